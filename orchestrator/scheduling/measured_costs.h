// Seconds of passes and of drafting: the prediction times a correction by size.
//
// A measurement corrects its own size and, since boxes get slower and faster as a whole, all others too. Drafting is
// compared with how slow the box is now, which passes tell. So a step's pass is reported first.

#pragma once

#include <functional>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "corrections.h"

// Predicted seconds by size, from 1 on, each asked for once: what predicts takes its time.
class Predicted {
 public:
  using OfSize = std::function<double(int64_t)>;

  explicit Predicted(OfSize of_size) : of_size_(std::move(of_size)) {}

  // `size`: at least 1. Throws std::length_error for one that no work has.
  double at(int64_t size) {
    if (size > MOST) throw std::length_error("expected a size of at most 16,777,216");
    while ((int64_t)seconds_.size() < size) seconds_.push_back(of_size_((int64_t)seconds_.size() + 1));
    return seconds_[size - 1];
  }

 private:
  static constexpr int64_t MOST = 1 << 24;

  OfSize of_size_;
  std::vector<double> seconds_;
};

class MeasuredCosts {
 public:
  // `pass_s` of so many rows; `drafting_s` of so many sequences, for each depth from 1 on; `row_s`: of each MTP layer,
  // for each row.
  MeasuredCosts(Predicted::OfSize pass_s, std::vector<Predicted::OfSize> drafting_s, std::vector<double> row_s)
      : predicted_pass_(std::move(pass_s)), row_s_(std::move(row_s)), drafting_(drafting_s.size()) {
    for (auto& of_depth : drafting_s) predicted_drafting_.emplace_back(std::move(of_depth));
  }

  // MTP layers whose cost is known.
  int most_drafts() const { return (int)drafting_.size(); }
  // Whether MTP layers took in rows that had waited, so that its cost is not guessed.
  bool is_taking_in_measured() const { return taking_in_.are_known(); }

  // Of a pass of so many rows.
  double trunk_s(int64_t rows) {
    return rows < 1 ? 0.0 : predicted_pass_.at(rows) * std::exp(passes_.at(std::log((double)rows)));
  }

  // Of the first `depth` MTP layers drafting for so many sequences, for which few rows wait. A depth that was not
  // measured is corrected as the nearest one, of two that are as near as the shallower. Before any was measured, all are
  // corrected as a pass of one row.
  double drafting_s(int depth, int64_t sequences) {
    if (depth < 1 || sequences < 1) return 0.0;
    const Corrections* known = nearest_drafting(depth);
    const double correction =
        known == nullptr ? passes_.at(0.0) : passes_.common() + known->at(std::log((double)sequences));
    return predicted_drafting_[depth - 1].at(sequences) * std::exp(correction);
  }

  // Of so many rows more in each of the first MTP layers, which had waited for them.
  double taking_in_s(const std::vector<int64_t>& rows) const {
    const double predicted_s = predicted_taking_in_s(rows);
    if (!(predicted_s > 0)) return 0.0;
    if (!taking_in_.are_known()) return predicted_s * std::exp(passes_.at(0.0));
    return predicted_s * std::exp(passes_.common() + taking_in_.at(std::log((double)total(rows))));
  }

  // Of a step whose sequences draft so deep, with so many rows of prompts and nothing to take in.
  double step_s(const std::vector<int>& depths, int64_t other_rows) {
    int64_t rows = other_rows + (int64_t)depths.size(), drafting = 0;
    int deepest = 0;
    for (const int depth : depths) {
      rows += depth;
      drafting += depth > 0;
      deepest = std::max(deepest, depth);
    }
    return trunk_s(rows) + drafting_s(deepest, drafting);
  }

  // A pass of so many rows took so long.
  void learn_pass(int64_t rows, double seconds) {
    if (rows < 1 || !is_time(seconds)) return;
    const double predicted_s = predicted_pass_.at(rows);
    if (is_time(predicted_s)) passes_.learn((double)rows, std::log(seconds) - std::log(predicted_s), ++steps_);
  }

  // So many MTP layers drafted for so many sequences; `taken_in`: rows of each that had waited.
  void learn_drafting(int depth, int64_t sequences, double seconds, const std::vector<int64_t>& taken_in) {
    if (depth < 1 || sequences < 1 || !is_time(seconds)) return;
    if (total(taken_in) > 0) {
      // Drafting itself may have been anything between nothing and twice what is usual.
      const double left_s = std::max(seconds - drafting_s(depth, sequences), 0.1 * seconds);
      learn_beside_passes(taking_in_, (double)total(taken_in), left_s, predicted_taking_in_s(taken_in));
      return;
    }
    const double predicted_s = predicted_drafting_[depth - 1].at(sequences);
    if (!is_time(predicted_s)) return;
    auto& known = drafting_[depth - 1];
    if (!known) known.emplace(DRAFTING_DRIFT);
    learn_beside_passes(*known, (double)sequences, seconds, predicted_s);
  }

 private:
  // Variance that a step adds to passes of all sizes alike: a box gets slower as a whole, for some steps.
  static constexpr double PASS_DRIFT = 0.03 * 0.03;
  // Variance that a step adds to how drafting stands to passes.
  static constexpr double DRAFTING_DRIFT = 0.003 * 0.003;

  static bool is_time(double seconds) { return seconds > 0 && std::isfinite(seconds); }

  static int64_t total(const std::vector<int64_t>& rows) {
    return std::accumulate(rows.begin(), rows.end(), (int64_t)0);
  }

  double predicted_taking_in_s(const std::vector<int64_t>& rows) const {
    double seconds = 0.0;
    for (size_t layer = 0; layer < std::min(rows.size(), row_s_.size()); layer++)
      seconds += (double)rows[layer] * row_s_[layer];
    return seconds;
  }

  const Corrections* nearest_drafting(int depth) const {
    for (int away = 0; away < most_drafts(); away++)
      for (const int place : {depth - 1 - away, depth - 1 + away})
        if (place >= 0 && place < most_drafts() && drafting_[place]) return &*drafting_[place];
    return nullptr;
  }

  void learn_beside_passes(Corrections& all, double size, double seconds, double predicted_s) {
    if (is_time(predicted_s))
      all.learn(size, std::log(seconds) - std::log(predicted_s) - passes_.common(), steps_);
  }

  Predicted predicted_pass_;
  std::vector<Predicted> predicted_drafting_;
  std::vector<double> row_s_;
  int64_t steps_ = 0;
  // What passes have in common, all other work has too.
  Corrections passes_{PASS_DRIFT};
  // By depth; its sizes are numbers of sequences.
  std::vector<std::optional<Corrections>> drafting_;
  // Its sizes are numbers of rows, all layers together.
  Corrections taking_in_{DRAFTING_DRIFT};
};
