// What depths of drafts were found to be best, and for whom.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "fastest_depths.h"

// What depths are wanted for: `other_rows` of prompts, and at most `most_rows` of drafts.
struct Asked {
  std::vector<int64_t> sequences;
  int64_t other_rows, most_rows;

  bool operator==(const Asked& other) const {
    return sequences == other.sequences && other_rows == other.other_rows && most_rows == other.most_rows;
  }
};

// The best depths, and the seconds of a step that they give. `takes_in`: whether rows wait for those who draft;
// `unit_s`: of a step without drafts and without prompts.
struct DraftPlan {
  Asked asked;
  Gains gains;
  Depths best;
  double best_s;
  bool takes_in;
  double unit_s;

  int64_t num_drafts() const { return std::accumulate(best.begin(), best.end(), (int64_t)0); }
  bool is_drafting() const { return deepest() > 0; }
  int deepest() const { return *std::max_element(best.begin(), best.end()); }
  // Steps without drafts that take as long as such a step.
  double best_steps() const { return best_s / unit_s; }
  // Expected tokens a second.
  double best_rate() const { return tokens(best) / best_s; }

  // Expected of a step.
  double tokens(const Depths& depths) const {
    double sum = 0.0;
    for (size_t of = 0; of < depths.size(); of++) {
      const size_t drafts = std::min<size_t>(depths[of], gains[of].size());
      sum = std::accumulate(gains[of].begin(), gains[of].begin() + drafts, sum + 1);
    }
    return sum;
  }

  // Where each of these sequences is among those that were asked for, -1 for who is not. They mostly have their order.
  std::vector<int> places_of(const std::vector<int64_t>& sequences) const {
    std::vector<int> places;
    size_t next = 0;
    for (const int64_t sequence : sequences) {
      auto found = std::find(asked.sequences.begin() + next, asked.sequences.end(), sequence);
      if (found == asked.sequences.end()) found = std::find(asked.sequences.begin(), asked.sequences.end(), sequence);
      const bool is_there = found != asked.sequences.end();
      places.push_back(is_there ? (int)(found - asked.sequences.begin()) : -1);
      if (is_there) next = places.back() + 1;
    }
    return places;
  }

  // Whether nobody came since it was made, and there is room for as many drafts.
  bool holds_for(const Asked& now) const {
    const auto places = places_of(now.sequences);
    return now.most_rows >= num_drafts() && std::count(places.begin(), places.end(), -1) == 0;
  }
};
