// Tries of other depths than the best ones, so that what changed is noticed.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "draft_plan.h"

// Time for tries: a share of all time, in steps without drafts, whatever these take: the box may get slower, and
// sequences come and go.
class TriesAccount {
 public:
  explicit TriesAccount(double share) : share_(share) {}

  // Save of all time up to then.
  void save_until(double time) {
    steps_ = std::min(steps_ + share_ * (time - time_), MOST_STEPS);
    time_ = time;
  }

  // The depths from the one on whose turn it is: after each try another one is looked at first.
  std::vector<int> in_turn(std::vector<int> depths) const {
    std::rotate(depths.begin(), depths.begin() + turns_ % (int64_t)depths.size(), depths.end());
    return depths;
  }

  // Whether it has enough for a try, which is paid then.
  bool pays(double loss) {
    if (loss > steps_) return false;
    turns_++;
    steps_ -= loss;
    return true;
  }

  // Steps until it has enough.
  double saving_steps(double loss) const { return (loss - steps_) / share_; }

 private:
  // What it may cost at first, and what may be saved up, in steps without drafts.
  static constexpr double AT_FIRST_STEPS = 1.5, MOST_STEPS = 6.0;

  double share_, steps_ = AT_FIRST_STEPS, time_ = 0.0;
  int64_t turns_ = 0;
};

// Says when to try which depths. Two accounts, shares of the time, pay for what that is expected to lose. In each step
// comes `next_step`, then `save`, then `depths` where a try is due.
class DraftTries {
 public:
  // `most`: drafts of a sequence in a step.
  DraftTries(int most, MeasuredCosts& costs) : most_(most), costs_(costs) {}

  // Whether a try is due in the next step, if it has so many rows of prompts.
  bool is_next(int64_t other_rows) const {
    // What prompts cost beside would hide what is tried.
    return going_on_ || (wait_steps_ <= 1 && other_rows == 0);
  }

  // Another step comes: whether a try is due.
  bool next_step(int64_t other_rows) {
    const bool is_due = is_next(other_rows);
    wait_steps_--;
    rows_steps_--;
    return is_due;
  }

  // The step takes as long as the plan's.
  void save(const DraftPlan& plan) { time_ += plan.best_steps(); }

  // Whether sequences have to keep rows, since a try is under way or will soon be due.
  bool needs_rows() const { return rows_steps_ <= 0; }

  // To try in this step; the best ones where no others can be paid for. The plan is of these candidates. `keeps_rows`:
  // whether they keep rows, without which no try begins.
  Depths depths(const DraftPlan& plan, const std::vector<Candidate>& candidates, bool keeps_rows) {
    rows_steps_ = 0;
    if (going_on_) return go_on(plan);
    near_.save_until(time_);
    far_.save_until(time_);
    wait_steps_ = TRY_GAP_STEPS;
    std::optional<double> saving_steps;
    // A far one that is too dear is waited for: near ones have time of their own.
    for (auto [account, depths] : {std::pair(&far_, far_depths(plan)), std::pair(&near_, near_depths(plan))}) {
      for (const auto& one : offered(plan, candidates, account->in_turn(depths))) {
        if (keeps_rows && account->pays(one.loss)) return run(one);
        const double steps = account->saving_steps(one.loss);
        saving_steps = std::min(saving_steps.value_or(steps), steps);
      }
    }
    wait(saving_steps.value_or(LONGEST_SAVING_STEPS), keeps_rows);
    return plan.best;
  }

 private:
  // Shares of the time that tries may cost beside the best depths: near ones say whether to draft at all.
  static constexpr double NEAR_SHARE = 0.002, FAR_SHARE = 0.001;
  // What a try costs beside its steps: the steps behind it find less in caches.
  static constexpr double TRY_STEPS = 0.06;
  // From one try to the next, at least.
  static constexpr int64_t TRY_GAP_STEPS = 12;
  // As many steps on end another depth is tried where much had to be taken in for the first one.
  static constexpr int MOST_TRY_STEPS = 8;
  // So many steps on end nobody drafts: the first finds fewer weights in caches, and is not learned from.
  static constexpr int WITHOUT_STEPS = 3;
  // So long nobody looks again what can be tried, at most, where nothing can be paid for yet.
  static constexpr double LONGEST_SAVING_STEPS = 60;
  // So many steps before a try sequences keep rows. A step tells of the rows before it.
  static constexpr int64_t CONTEXT_STEPS = CONTEXT_ROWS + 1;
  // As far ahead as anybody can say when a try will be paid for.
  static constexpr double LONGEST_WITHOUT_ROWS_STEPS = 1e6;

  // Other depths for so many steps, and what that is expected to lose, in steps without drafts.
  struct Try {
    std::vector<int64_t> sequences;
    Depths depths;
    int steps;
    double loss;

    int64_t num_drafts() const { return std::accumulate(depths.begin(), depths.end(), (int64_t)0); }
  };

  // Until something may be paid for: to look takes time too.
  void wait(double saving_steps, bool keeps_rows) {
    wait_steps_ = std::max(TRY_GAP_STEPS, (int64_t)std::min(saving_steps, LONGEST_SAVING_STEPS));
    // To keep none for less than as long is not worth it.
    if (keeps_rows && saving_steps < 2 * CONTEXT_STEPS) return;
    const auto steps = (int64_t)std::min(saving_steps, LONGEST_WITHOUT_ROWS_STEPS);
    rows_steps_ = std::max<int64_t>(0, steps - CONTEXT_STEPS);
    // Once they keep some, nobody looks before there are enough.
    if (rows_steps_ < wait_steps_) wait_steps_ = std::max(wait_steps_, rows_steps_ + CONTEXT_STEPS);
  }

  // As long as the same sequences are there, and room for their drafts.
  Depths go_on(const DraftPlan& plan) {
    const Try tried = *going_on_;
    if (tried.sequences == plan.asked.sequences && tried.num_drafts() <= plan.asked.most_rows) return run(tried);
    going_on_.reset();
    return plan.best;
  }

  Depths run(Try tried) {
    const Depths depths = tried.depths;
    if (--tried.steps > 0) going_on_ = std::move(tried);
    else going_on_.reset();
    return depths;
  }

  // What it costs that all draft as deep as the deepest was perhaps measured long ago.
  static std::vector<int> near_depths(const DraftPlan& plan) {
    const int deepest = plan.deepest();
    return deepest > 0 ? std::vector{0, deepest} : std::vector{1};
  }

  // Without drafts nobody knows which depth would be slower, so each has its turn. Beyond a depth that is slower, more are
  // slower still.
  std::vector<int> far_depths(const DraftPlan& plan) const {
    const int deepest = plan.deepest();
    std::vector<int> depths;
    if (deepest == 0)
      for (int depth = 2; depth <= most_; depth++) depths.push_back(depth);
    else
      for (const int depth : {deepest + 1, deepest - 1})
        if (0 < depth && depth <= most_) depths.push_back(depth);
    return depths.empty() ? near_depths(plan) : depths;
  }

  // Ways to try the first of these depths that there are any for.
  std::vector<Try> offered(const DraftPlan& plan, const std::vector<Candidate>& candidates,
                           const std::vector<int>& depths) {
    for (const int depth : depths) {
      auto tries = tries_of(plan, candidates, depth);
      if (!tries.empty()) return tries;
    }
    return {};
  }

  // Ways to try a depth that are not the best one anyway. Where much waits, a try goes on for several steps, since it is
  // taken in only once. So does one without drafts.
  std::vector<Try> tries_of(const DraftPlan& plan, const std::vector<Candidate>& candidates, int depth) {
    std::vector<Try> tries;
    for (auto& depths : ways(plan, candidates, depth)) {
      Try one{plan.asked.sequences, std::move(depths), 1, 0.0};
      if (one.depths == plan.best || one.num_drafts() > plan.asked.most_rows) continue;
      double waiting_s = 0.0;
      for (size_t of = 0; of < candidates.size(); of++)
        waiting_s += costs_.taking_in_s(candidates[of].to_take_in(one.depths[of]));
      const double step_s = costs_.step_s(one.depths, plan.asked.other_rows);
      const double step_loss_s = std::max(0.0, step_s - plan.tokens(one.depths) / plan.best_rate());
      if (one.num_drafts() == 0)
        one.steps = WITHOUT_STEPS;
      else if (waiting_s > 0)
        one.steps = (int)std::min<double>(MOST_TRY_STEPS, 2 + waiting_s / std::max(step_loss_s, 1e-9));
      one.loss = (waiting_s + one.steps * step_loss_s) / plan.unit_s + TRY_STEPS;
      tries.push_back(std::move(one));
    }
    return tries;
  }

  // All sequences have that depth. Where rows wait, the sequence with the fewest may have it alone. Then all have it only
  // if it is one draft, and if what it costs to take rows in was measured.
  std::vector<Depths> ways(const DraftPlan& plan, const std::vector<Candidate>& candidates, int depth) const {
    // Of those that can have it, which is everybody where it is no draft.
    std::vector<std::pair<int64_t, size_t>> waits;
    Depths of_all;
    for (const auto& of : candidates) {
      of_all.push_back(of.upto(depth));
      if (depth > 0 && of_all.back() == 0) continue;
      const auto rows = of.to_take_in(depth);
      waits.push_back({std::accumulate(rows.begin(), rows.end(), (int64_t)0), of_all.size() - 1});
    }
    if (waits.size() <= 1 || std::max_element(waits.begin(), waits.end())->first == 0) return {of_all};
    std::vector<Depths> found;
    if (depth <= 1 && costs_.is_taking_in_measured()) found.push_back(of_all);
    const size_t fewest = std::min_element(waits.begin(), waits.end())->second;
    found.push_back(plan.best);
    found.back()[fewest] = of_all[fewest];
    return found;
  }

  int most_;
  MeasuredCosts& costs_;
  TriesAccount near_{NEAR_SHARE}, far_{FAR_SHARE};
  // So far, in steps without drafts.
  double time_ = 0.0;
  // Until a try may begin.
  int64_t wait_steps_ = TRY_GAP_STEPS / 2;
  // Until sequences have to keep rows.
  int64_t rows_steps_ = 0;
  // What was begun, with the steps that are left to it.
  std::optional<Try> going_on_;
};
