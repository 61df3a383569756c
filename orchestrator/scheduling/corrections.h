// By how much measured times differ from predicted ones, by the size of the work.
//
// The logarithm of measured by predicted time has three parts: what the size has of its own, what all sizes have in
// common now, and noise. A Kalman filter, by Kalman (1960), tells them apart, with all covariances. Boxes get slower as a
// whole for some steps on end, so steps that are near to each other show by how much sizes differ. Over the logarithm of
// the size, what is own is a random walk: sizes that are near to each other are corrected alike.

#ifndef POTLUCK_CORRECTIONS_H
#define POTLUCK_CORRECTIONS_H

#include <math.h>
#include <stdint.h>

// What is own is kept of these sizes. Between two, a straight line counts, and beyond the last one its value.
static const double EDGES[] = {1,  2,  3,  4,  5,  6,  7,  8,  10,  12,  14,
                               16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256};
enum { NUM_EDGES = sizeof(EDGES) / sizeof(EDGES[0]) };
// The first value is what all have in common: nothing at first, and then what has changed.
enum { NUM_VALUES = 1 + NUM_EDGES };
// Variance of a measurement's logarithm: at first, and at least.
static const double NOISE = 0.1 * 0.1, LEAST_NOISE = 0.04 * 0.04;
// So many measurements say how much they vary.
static const double NOISE_MEMORY = 64.0;
// Standard deviations that a measurement may differ: what is beyond, others did to the box meanwhile.
static const double FAR = 2.5;
// So many of a size on end beyond that, on the same side, are a change.
enum { FAR_AGAIN = 4 };
// Variance of a size before anything was measured, and from one size to another that is e times as large.
static const double ANY_VALUE = 1e6, BETWEEN_SIZES = 0.17 * 0.17;
// The share of the latter that a step adds again.
static const double OWN_DRIFT = 2e-4;

// `logs`: of the edges. Of each size, `counts` measurements; `far`: so many on end were far above the value, or,
// below 0, below it. `step`: of the last measurement, -1 before the first.
typedef struct {
  double values[NUM_VALUES], covariance[NUM_VALUES][NUM_VALUES], logs[NUM_EDGES];
  double noise, common_drift;
  int64_t step, counts[NUM_EDGES], far[NUM_EDGES];
} Corrections;

// Places in `values` of two sizes that one lies between, and the second one's share.
typedef struct {
  int below, above;
  double share;
} Place;

// A random walk from the first size on. That one stands for what all of them have.
static inline void add_own_variance(Corrections* all, double of_first, double between) {
  for (int one = 0; one < NUM_EDGES; one++)
    for (int other = 0; other < NUM_EDGES; other++)
      all->covariance[1 + one][1 + other] += of_first + between * all->logs[one < other ? one : other];
}

static inline void begin(Corrections* all, double common_drift) {
  *all = (Corrections){.noise = NOISE, .common_drift = common_drift, .step = -1};
  for (int edge = 0; edge < NUM_EDGES; edge++) all->logs[edge] = log(EDGES[edge]);
  add_own_variance(all, ANY_VALUE, BETWEEN_SIZES);
}

static inline Place place_of(const Corrections* all, double log_size) {
  int above = 0;
  while (above < NUM_EDGES && all->logs[above] < log_size - 1e-12) above++;
  if (above == 0) return (Place){1, 1, 0.0};
  if (above == NUM_EDGES) return (Place){NUM_EDGES, NUM_EDGES, 0.0};
  const double from = all->logs[above - 1];
  return (Place){above, 1 + above, fmin(1.0, (log_size - from) / (all->logs[above] - from))};
}

static inline double at_place(const double* values, Place place) {
  return values[0] + (1 - place.share) * values[place.below] + place.share * values[place.above];
}

// Of a size, given as its logarithm; 0 before anything was measured.
static inline double correction_at(const Corrections* all, double log_size) {
  return at_place(all->values, place_of(all, log_size));
}

// How far all values are moved with a measurement at a place.
static inline void moved_with(const Corrections* all, Place place, double* moved) {
  for (int value = 0; value < NUM_VALUES; value++) moved[value] = at_place(all->covariance[value], place);
}

// Takes a logarithm in.
static inline void learn(Corrections* all, double rows, double found, int64_t step) {
  const Place place = place_of(all, log(rows));
  const double steps = all->step < 0 ? 0.0 : (double)(step - all->step);
  all->step = step;
  all->covariance[0][0] += steps * all->common_drift;
  add_own_variance(all, 0.0, steps * OWN_DRIFT * BETWEEN_SIZES);
  double moved[NUM_VALUES];
  moved_with(all, place, moved);
  double total = fmax(0.0, at_place(moved, place)) + all->noise, rest = found - at_place(all->values, place);
  const int nearest = (place.share < 0.5 ? place.below : place.above) - 1;
  // A size that was not measured for long may be anything. But one slow pass must not make it look slow: then nobody
  // would measure it again.
  const double usual = fmin(total, fmin(fmax(0.0, all->covariance[0][0]), NOISE) + all->noise);
  const double farthest = FAR * sqrt(all->counts[nearest] > 0 ? usual : total);
  int64_t* far = &all->far[nearest];
  if (fabs(rest) <= farthest) {
    *far = 0;
  } else {
    *far = rest > 0 ? (*far > 0 ? *far : 0) + 1 : (*far < 0 ? *far : 0) - 1;
    if (*far < FAR_AGAIN && *far > -FAR_AGAIN) {
      rest = copysign(farthest, rest);
    } else {
      // It is more often the box that has changed.
      all->covariance[0][0] += rest * rest;
      moved_with(all, place, moved);
      total = fmax(0.0, at_place(moved, place)) + all->noise;
    }
  }
  // The first one also says how little was known.
  if (all->counts[nearest]++ > 0)
    all->noise = fmax(LEAST_NOISE, all->noise * (1 + (rest * rest / total - 1) / NOISE_MEMORY));
  for (int one = 0; one < NUM_VALUES; one++) {
    all->values[one] += rest * moved[one] / total;
    for (int other = 0; other < NUM_VALUES; other++)
      all->covariance[one][other] -= moved[one] * moved[other] / total;
  }
}

#endif
