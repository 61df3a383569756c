// By how much measured times differ from predicted ones, by the size of the work.
//
// The logarithm of measured by predicted time has three parts: what the size has of its own, what all sizes have in
// common now, and noise. A Kalman filter, by Kalman (1960), tells them apart, with all covariances. Boxes get slower as a
// whole for some steps on end, so steps that are near to each other show by how much sizes differ. Over the logarithm of
// the size, what is own is a random walk: sizes that are near to each other are corrected alike.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

class Corrections {
 public:
  // `common_drift`: variance that a step adds to what all sizes have in common.
  explicit Corrections(double common_drift) : common_drift_(common_drift) {
    for (int edge = 0; edge < NUM_EDGES; edge++) logs_[edge] = std::log(EDGES[edge]);
    add_own_variance(ANY_VALUE, BETWEEN_SIZES);
  }

  // Whether anything was measured.
  bool are_known() const { return step_ >= 0; }
  // The step of the last measurement, -1 before the first.
  int64_t last_step() const { return step_; }
  // By how much all sizes have changed since the first measurement.
  double common() const { return values_[0]; }
  // Of a size, given as its logarithm; 0 before anything was measured.
  double at(double log_size) const { return at_place(values_, place_of(log_size)); }

  // Takes the logarithm of measured by predicted time in; `step` is no earlier one than before.
  void learn(double size, double found, int64_t step) {
    const Place place = place_of(std::log(size));
    const double steps = step_ < 0 ? 0.0 : (double)(step - step_);
    step_ = step;
    covariance_[0][0] += steps * common_drift_;
    add_own_variance(0.0, steps * OWN_DRIFT * BETWEEN_SIZES);
    double moved[NUM_VALUES];
    moved_with(place, moved);
    double total = std::max(0.0, at_place(moved, place)) + noise_, rest = found - at_place(values_, place);
    const int nearest = (place.share < 0.5 ? place.below : place.above) - 1;
    // A size that was not measured for long may be anything. But one slow pass must not make it look slow: then nobody
    // would measure it again.
    const double usual = std::min(total, std::min(std::max(0.0, covariance_[0][0]), NOISE) + noise_);
    const double farthest = FAR * std::sqrt(counts_[nearest] > 0 ? usual : total);
    int64_t& far = far_[nearest];
    if (std::fabs(rest) <= farthest) {
      far = 0;
    } else {
      far = rest > 0 ? std::max<int64_t>(far, 0) + 1 : std::min<int64_t>(far, 0) - 1;
      if (far < FAR_AGAIN && far > -FAR_AGAIN) {
        rest = std::copysign(farthest, rest);
      } else {
        // It is more often the box that has changed.
        covariance_[0][0] += rest * rest;
        moved_with(place, moved);
        total = std::max(0.0, at_place(moved, place)) + noise_;
      }
    }
    // The first one also says how little was known.
    if (counts_[nearest]++ > 0)
      noise_ = std::max(LEAST_NOISE, noise_ * (1 + (rest * rest / total - 1) / NOISE_MEMORY));
    for (int one = 0; one < NUM_VALUES; one++) {
      values_[one] += rest * moved[one] / total;
      for (int other = 0; other < NUM_VALUES; other++)
        covariance_[one][other] -= moved[one] * moved[other] / total;
    }
  }

 private:
  // What is own is kept of these sizes. Between two, a straight line counts, and beyond the last one its value.
  static constexpr double EDGES[] = {1,  2,  3,  4,  5,  6,  7,  8,  10,  12,  14,
                                     16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256};
  static constexpr int NUM_EDGES = sizeof(EDGES) / sizeof(EDGES[0]);
  // The first value is what all have in common: nothing at first, and then what has changed.
  static constexpr int NUM_VALUES = 1 + NUM_EDGES;
  // Variance of a measurement's logarithm: at first, and at least.
  static constexpr double NOISE = 0.1 * 0.1, LEAST_NOISE = 0.04 * 0.04;
  // So many measurements say how much they vary.
  static constexpr double NOISE_MEMORY = 64.0;
  // Standard deviations that a measurement may differ: what is beyond, others did to the box meanwhile.
  static constexpr double FAR = 2.5;
  // So many of a size on end beyond that, on the same side, are a change.
  static constexpr int FAR_AGAIN = 4;
  // Variance of a size before anything was measured, and from one size to another that is e times as large.
  static constexpr double ANY_VALUE = 1e6, BETWEEN_SIZES = 0.17 * 0.17;
  // The share of the latter that a step adds again.
  static constexpr double OWN_DRIFT = 2e-4;

  // Places in `values_` of two sizes that one lies between, and the second one's share.
  struct Place {
    int below, above;
    double share;
  };

  Place place_of(double log_size) const {
    int above = 0;
    while (above < NUM_EDGES && logs_[above] < log_size - 1e-12) above++;
    if (above == 0) return {1, 1, 0.0};
    if (above == NUM_EDGES) return {NUM_EDGES, NUM_EDGES, 0.0};
    const double from = logs_[above - 1];
    return {above, 1 + above, std::min(1.0, (log_size - from) / (logs_[above] - from))};
  }

  static double at_place(const double* values, Place place) {
    return values[0] + (1 - place.share) * values[place.below] + place.share * values[place.above];
  }

  // How far all values are moved with a measurement at a place.
  void moved_with(Place place, double* moved) const {
    for (int value = 0; value < NUM_VALUES; value++) moved[value] = at_place(covariance_[value], place);
  }

  // A random walk from the first size on. That one stands for what all of them have.
  void add_own_variance(double of_first, double between) {
    for (int one = 0; one < NUM_EDGES; one++)
      for (int other = 0; other < NUM_EDGES; other++)
        covariance_[1 + one][1 + other] += of_first + between * logs_[std::min(one, other)];
  }

  double logs_[NUM_EDGES];
  double values_[NUM_VALUES] = {}, covariance_[NUM_VALUES][NUM_VALUES] = {};
  double noise_ = NOISE, common_drift_;
  int64_t step_ = -1;
  // Of each size, measurements; and so many on end that were far above the value, or, below 0, below it.
  int64_t counts_[NUM_EDGES] = {}, far_[NUM_EDGES] = {};
};
