// Finds the best depths, where rows wait for MTP layers too.

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include "acceptance.h"
#include "draft_plan.h"

class DraftPlanner {
 public:
  // `most`: drafts of a sequence in a step.
  DraftPlanner(int most, MeasuredCosts& costs) : most_(most), costs_(costs) {}

  // `absent`: sequences that are taken for there where rows wait; `least_gain` as in `fastest_depths`.
  DraftPlan plan(Asked asked, const std::vector<Candidate>& candidates, Acceptance& acceptance, int64_t absent,
                 double least_gain) {
    const Gains gains = gains_of(candidates, acceptance);
    const WaitingSeconds nothing(candidates.size());
    Depths best = fastest_depths(costs_, gains, nothing, step_of(asked, 0), least_gain).depths;
    if (takes_in(candidates, best)) best = where_rows_wait(asked, gains, candidates, absent, least_gain);
    const double best_s = costs_.step_s(best, asked.other_rows);
    const bool has_to_take_in = takes_in(candidates, best);
    const double unit_s = costs_.trunk_s((int64_t)candidates.size());
    return {std::move(asked), gains, std::move(best), best_s, has_to_take_in, unit_s};
  }

 private:
  // What rows that had waited cost is held against what drafts are expected to gain in so many steps.
  static constexpr int LONGEST_USE_STEPS = 256;
  // Steps without drafts that taking in may take at a time, but for one sequence: all others wait for it.
  static constexpr double MOST_TAKING_IN_STEPS = 3.0;

  PlainStep step_of(const Asked& asked, int64_t absent) const {
    return {(int64_t)asked.sequences.size() + absent, asked.other_rows, asked.most_rows, most_};
  }

  // Each draft gains the product of the chances up to it.
  Gains gains_of(const std::vector<Candidate>& candidates, Acceptance& acceptance) const {
    const auto shared = acceptance.shared();
    Gains gains;
    for (const auto& of : candidates) {
      gains.push_back(acceptance.of(of.sequence, shared));
      auto& own = gains.back();
      own.resize(of.upto(most_));
      std::partial_sum(own.begin(), own.end(), own.begin(), std::multiplies<double>());
    }
    return gains;
  }

  // Whether somebody has rows to take in for these depths.
  static bool takes_in(const std::vector<Candidate>& candidates, const Depths& depths) {
    for (size_t of = 0; of < candidates.size(); of++)
      if (!candidates[of].to_take_in(depths[of]).empty()) return true;
    return false;
  }

  // Some sequences begin now, if it pays until they end.
  //
  // The fewer sequences, the more drafts pay. But somebody soon follows who ended, so they count as there.
  Depths where_rows_wait(const Asked& asked, const Gains& gains, const std::vector<Candidate>& candidates,
                         int64_t absent, double least_gain) {
    const PlainStep step = step_of(asked, absent);
    const WaitingSeconds nothing(candidates.size());
    const std::vector<bool> all(candidates.size(), true);
    const auto best = fastest_depths(costs_, of_ready_layers(gains, candidates, all), nothing, step, least_gain);
    // With a prompt beside, the step would take longest of all.
    if (asked.other_rows > 0) return best.depths;
    const Gains possible = of_ready_layers(gains, candidates, too_dear(candidates));
    const auto found = fastest_depths(costs_, possible, waiting_seconds(candidates), step, least_gain);
    return found.rate > best.rate ? found.depths : best.depths;
  }

  // Of `whose` drafts, those alone for which nothing waits.
  static Gains of_ready_layers(Gains gains, const std::vector<Candidate>& candidates, const std::vector<bool>& whose) {
    for (size_t of = 0; of < candidates.size(); of++)
      if (whose[of] && candidates[of].is_behind())
        gains[of].resize(std::min<size_t>(gains[of].size(), candidates[of].ready_layers()));
    return gains;
  }

  // Sequences for which so much waits that others begin first; what was never measured, one begins.
  std::vector<bool> too_dear(const std::vector<Candidate>& candidates) {
    std::vector<std::pair<double, size_t>> behind;
    for (size_t of = 0; of < candidates.size(); of++)
      if (candidates[of].is_behind()) behind.push_back({costs_.taking_in_s(candidates[of].to_take_in(1)), of});
    std::sort(behind.begin(), behind.end());
    const double unit_s = costs_.trunk_s((int64_t)candidates.size());
    double left_s = costs_.is_taking_in_measured() ? MOST_TAKING_IN_STEPS * unit_s : 0.0;
    std::vector<bool> found(candidates.size(), false);
    for (size_t place = 1; place < behind.size(); place++) {
      left_s -= behind[place].first;
      found[behind[place].second] = left_s < 0;
    }
    return found;
  }

  // For each depth, by how much each of the steps is longer that are left to the answer.
  WaitingSeconds waiting_seconds(const std::vector<Candidate>& candidates) const {
    WaitingSeconds seconds(candidates.size());
    for (size_t of = 0; of < candidates.size(); of++) {
      if (!candidates[of].is_behind()) continue;
      const int steps = std::clamp(candidates[of].most, 1, LONGEST_USE_STEPS);
      for (int depth = 0; depth <= most_; depth++)
        seconds[of].push_back(costs_.taking_in_s(candidates[of].to_take_in(depth)) / steps);
    }
    return seconds;
  }

  int most_;
  MeasuredCosts& costs_;
};
