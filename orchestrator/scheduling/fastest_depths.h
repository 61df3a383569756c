// The depths of drafts with the most expected tokens a second, from gains and costs.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "candidate.h"
#include "measured_costs.h"

// Expected tokens of each sequence's first draft, of its second, ...
using Gains = std::vector<std::vector<double>>;

// By how much a step is longer for what is taken in for a sequence, by its depth from 0 on; nothing for 0 s.
using WaitingSeconds = std::vector<std::vector<double>>;

// A step without drafts, and how many there may be: `most_drafts` of a sequence, `most_rows` of all together.
struct PlainStep {
  int64_t num_sequences, other_rows, most_rows;
  int most_drafts;
};

struct Fastest {
  Depths depths;
  double rate;
};

// For each depth and number of drafts those that gain most are taken. Where nothing waits, another choice is better by
// no more than what drafting for fewer sequences saves. `least_gain`: part by which drafts must be faster than none, else
// there are none; below 0, they may be slower.
inline Fastest fastest_depths(MeasuredCosts& costs, const Gains& gains, const WaitingSeconds& waiting_s,
                              const PlainStep& step, double least_gain) {
  struct Draft {
    double gain;
    int place, sequence;
  };
  std::vector<Draft> drafts;
  for (size_t sequence = 0; sequence < gains.size(); sequence++)
    for (size_t place = 0; place < gains[sequence].size(); place++)
      drafts.push_back({gains[sequence][place], (int)place, (int)sequence});
  std::stable_sort(drafts.begin(), drafts.end(), [](const Draft& one, const Draft& other) {
    return one.gain != other.gain ? one.gain > other.gain : one.place < other.place;
  });

  const int64_t rows = step.num_sequences + step.other_rows;
  // Of passes by their drafts: every depth asks for the same.
  std::vector<double> passes_s;
  for (int64_t count = 0; count <= std::clamp<int64_t>(step.most_rows, 0, (int64_t)drafts.size()); count++)
    passes_s.push_back(costs.trunk_s(rows + count));
  double best_rate = (double)step.num_sequences / passes_s[0] * (1 + least_gain);
  size_t best_count = 0;
  int best_depth = 0;
  for (int depth = 1; depth <= step.most_drafts; depth++) {
    double tokens = (double)step.num_sequences, drafting_s = 0.0, taking_in_s = 0.0;
    size_t count = 0, num_drafting = 0;
    for (const Draft& draft : drafts) {
      if (draft.place >= depth) continue;
      if (++count >= passes_s.size()) break;
      if (draft.place == 0) {
        drafting_s = costs.drafting_s(depth, (int64_t)++num_drafting);
        if (!waiting_s[draft.sequence].empty()) taking_in_s += waiting_s[draft.sequence][depth];
      }
      tokens += draft.gain;
      const double rate = tokens / (passes_s[count] + drafting_s + taking_in_s);
      if (rate > best_rate) best_rate = rate, best_count = count, best_depth = depth;
    }
  }
  Depths depths(gains.size(), 0);
  for (const Draft& draft : drafts) {
    if (best_count == 0) break;
    if (draft.place >= best_depth) continue;
    depths[draft.sequence]++;
    best_count--;
  }
  return {depths, best_rate};
}
