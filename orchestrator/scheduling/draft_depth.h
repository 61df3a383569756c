// How many drafts to make for each sequence of a step: as many as make the batch fastest, or none.

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "acceptance.h"
#include "draft_planner.h"
#include "draft_tries.h"

// Chooses depths from measured acceptance and costs; the same messages give the same choices.
class DraftDepth {
 public:
  // `most`: drafts of a sequence in a step; `costs` may learn meanwhile.
  DraftDepth(int most, MeasuredCosts& costs)
      : most_(std::min(most, costs.most_drafts())), acceptance_(most_), planner_(most_, costs), tries_(most_, costs) {}

  int most() const { return most_; }
  // How often the best depths were looked for.
  int64_t plans_made() const { return plans_made_; }
  // Expected chance of each draft of a sequence to hold if those before it do.
  std::vector<double> acceptance(int64_t sequence) { return acceptance_.of(sequence, acceptance_.shared()); }

  // Whether sequences keep their rows for drafts from now on. Where drafts have not paid for long, they do so only before
  // tries: most rows would be forgotten before anybody asks for them.
  bool keeps_rows() const { return step_ < rows_until_ || tries_.needs_rows(); }

  // Whether so many sequences make no drafts in the next step, whoever they are. It is asked once a step, since time for
  // tries is saved with it, and `choose` only where it is not so: to look at sequences takes time.
  bool rests(int64_t num_sequences, int64_t other_rows) {
    if (num_sequences == 0 || most_ < 1) return true;
    if (!plan_ || plan_->is_drafting() || step_ >= plan_until_ || tries_.is_next(other_rows)) return false;
    follow(num_sequences);
    if (usual_ < (int64_t)plan_->asked.sequences.size()) {
      // The fewer sequences, the more drafts pay.
      plan_until_ = step_;
      return false;
    }
    tries_.next_step(other_rows);
    tries_.save(*plan_);
    return true;
  }

  // Drafts of each sequence in the next step. `asked.sequences` are the candidates'; `candidates` gives them with what they
  // are behind, which takes time and is seldom needed, so it is asked where it is. `most`: of each, drafts that could
  // still become its output.
  Depths choose(const Asked& asked, const std::vector<int>& most, const std::function<std::vector<Candidate>()>& candidates) {
    const size_t count = asked.sequences.size();
    Depths chosen(count, 0);
    if (rests((int64_t)count, asked.other_rows)) return chosen;
    follow((int64_t)count);
    // They may keep rows from this step on, but have none yet.
    const bool had_rows = keeps_rows();
    const bool tries = tries_.next_step(asked.other_rows);
    const bool holds = plan_ && step_ < plan_until_ && (tries ? plan_->asked == asked : plan_->holds_for(asked));
    if (!holds) make_plan(asked, candidates(), had_rows ? SAME_STEPS : RESTING_STEPS);
    tries_.save(*plan_);
    if (!tries && !plan_->is_drafting()) return chosen;
    const Depths planned = tries ? tries_.depths(*plan_, candidates(), had_rows) : plan_->best;
    if (!had_rows) return chosen;
    // What a try teaches is of use as long as rows are there.
    if (planned != plan_->best && plan_until_ > step_ + SAME_STEPS) plan_until_ = step_ + 1;
    const auto drafting = std::count_if(planned.begin(), planned.end(), [](int depth) { return depth > 0; });
    // What they waited for is taken in, so others may begin.
    if (plan_->takes_in && drafting > 0 && drafting < (int64_t)planned.size()) plan_until_ = step_;
    const auto places = plan_->places_of(asked.sequences);
    for (size_t of = 0; of < count; of++) chosen[of] = std::max(0, std::min(planned[places[of]], most[of]));
    return chosen;
  }

  // A step is done, with drafts of these sequences.
  void learn(const std::vector<Verified>& verified) {
    step_++;
    acceptance_.learn(verified);
  }

  // Somebody was put back: its rows will wait again.
  void plan_anew() { plan_until_ = step_; }
  // It has ended.
  void forget(int64_t sequence) { acceptance_.forget(sequence); }

 private:
  // Drafts begin where they are faster than none, and go on until they are slower by that part. Only drafts show whether
  // drafts hold, so an estimate that is a little too low must not end them.
  static constexpr double GO_ON_LOSS = 0.005;
  // So long a choice holds for the same sequences, or for those that are left: a step teaches little.
  static constexpr int64_t SAME_STEPS = 16;
  // Where drafts have not paid for long, it holds longer.
  static constexpr int64_t RESTING_STEPS = 64;
  // So long somebody who ended is taken for there where rows are to be taken in: who follows comes soon.
  static constexpr int64_t FOLLOWED_STEPS = 16;
  // So long after somebody drafted because it pays, all keep rows.
  static constexpr int64_t KEEPING_STEPS = 128;

  // Note how many sequences there are.
  void follow(int64_t num_sequences) {
    if (num_sequences < usual_ && step_ < usual_until_) return;
    usual_ = num_sequences;
    usual_until_ = step_ + FOLLOWED_STEPS;
  }

  // It holds for so many steps.
  void make_plan(Asked asked, const std::vector<Candidate>& candidates, int64_t steps) {
    const double least_gain = plan_ && plan_->is_drafting() ? -GO_ON_LOSS : 0.0;
    const int64_t absent = usual_ - (int64_t)candidates.size();
    plan_ = planner_.plan(std::move(asked), candidates, acceptance_, absent, least_gain);
    plan_until_ = step_ + steps;
    if (plan_->is_drafting()) rows_until_ = step_ + KEEPING_STEPS;
    plans_made_++;
  }

  int most_;
  int64_t step_ = 0, plans_made_ = 0;
  Acceptance acceptance_;
  DraftPlanner planner_;
  DraftTries tries_;
  // The most sequences lately, and the step until which that holds if no more come.
  int64_t usual_ = 0, usual_until_ = 0;
  std::optional<DraftPlan> plan_;
  // The step at which it is made anew.
  int64_t plan_until_ = 0;
  int64_t rows_until_ = KEEPING_STEPS;
};
