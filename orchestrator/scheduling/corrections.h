// By how much measured times differ from predicted ones, by the size of the work.
//
// Sizes that are near to each other are corrected alike, the more so if one was measured long ago. Logarithms of
// seconds are values of a Kalman filter for each size, by Kalman (1960), without covariances. Over the sizes they are
// smoothed as a random walk, by Rauch, Tung and Striebel (1965).

#ifndef POTLUCK_CORRECTIONS_H
#define POTLUCK_CORRECTIONS_H

#include <math.h>
#include <stdint.h>

// Works of as many rows as an edge, or of more than the edge before, are taken for alike.
static const double EDGES[] = {1,  2,  3,  4,  5,  6,  7,  8,  10,  12,  14,
                               16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256};
enum { NUM_EDGES = sizeof(EDGES) / sizeof(EDGES[0]) };
// Variance of a measurement's logarithm, until measurements say it, and at least.
static const double NOISE = 0.1 * 0.1, LEAST_NOISE = 0.04 * 0.04;
// So many measurements say how much they vary.
static const double NOISE_MEMORY = 64.0;
// Standard deviations of measurements that one may differ: what is beyond, others did to the box meanwhile. Also of a
// size that was not measured for long, whose value may be anything: nobody would measure it again if it seemed slow.
static const double FAR = 2.5;
// So many on end beyond that, on the same side, are a change.
enum { FAR_AGAIN = 4 };
// Variance that a step adds to one size alone.
static const double OWN_DRIFT = 0.003 * 0.003;
// Variance from one size to another that is e times as large.
static const double BETWEEN_SIZES = 0.17 * 0.17;
// After so many measurements, the value may move by a factor of two at a time: a pass that was run again says nothing
// of the others.
enum { FEW = 3 };
static const double MOST = 0.69314718055994530942;
// Of what one measurement then says, no more is taken in: the first pass of its kind finds caches without its weights.
static const double MOST_SHARE = 0.25;
// So many measurements say where a size's mean lies.
enum { SIZE_MEMORY = 20 };

// Logarithms of a size, and of measured by predicted seconds.
typedef struct {
  double log_size, value;
} Point;

// `variance` is the value's, as it was at that step; `count` measurements, 0 for none yet. `far`: so many on end were
// far above the value, or, below 0, below it.
typedef struct {
  Point mean;
  double variance;
  int64_t step, count, far;
} Size;

typedef struct {
  Size sizes[NUM_EDGES];
  double noise;
  int64_t step;
  Point smooth[NUM_EDGES];
  int num_smooth;  // -1 where they are to be found anew
} Corrections;

static inline double clamped(double value, double low, double high) { return fmin(fmax(value, low), high); }

static inline Size* size_of(Corrections* all, double rows) {
  int edge = 0;
  while (edge < NUM_EDGES - 1 && EDGES[edge] < rows) edge++;
  return &all->sizes[edge];
}

// By how much all sizes have changed, and the share that is left of the variance that they have in common.
typedef struct {
  double change, left;
} Common;

// Takes a logarithm in. What differs from the value that is known is noise, or the size drifted, or all sizes did. The
// longer a size was not measured, the more of it is its own.
static inline Common learn(Corrections* all, double rows, double found, int64_t step, double common_variance) {
  Size* known = size_of(all, rows);
  all->num_smooth = -1;
  all->step = step;
  if (known->count == 0) {
    *known = (Size){{log(rows), found}, all->noise, step, 1, 0};
    return (Common){0.0, 1.0};
  }
  if (known->count >= FEW) found = clamped(found, known->mean.value - MOST, known->mean.value + MOST);
  known->count++;
  known->mean.log_size += (log(rows) - known->mean.log_size) / fmin((double)known->count, SIZE_MEMORY);
  double variance = known->variance + OWN_DRIFT * (double)(step - known->step);
  double total = variance + common_variance + all->noise;
  double rest = found - known->mean.value;
  const double farthest = FAR * sqrt(common_variance + all->noise);
  if (fabs(rest) <= farthest) {
    known->far = 0;
  } else {
    const int64_t before = known->far;
    known->far = rest > 0 ? (before > 0 ? before : 0) + 1 : (before < 0 ? before : 0) - 1;
    if (known->far < FAR_AGAIN && known->far > -FAR_AGAIN) {
      rest = copysign(farthest, rest);
    } else {
      variance += rest * rest;
      total = variance + common_variance + all->noise;
    }
  }
  all->noise = fmax(LEAST_NOISE, all->noise * (1 + (rest * rest / total - 1) / NOISE_MEMORY));
  double share = variance / total;
  if (known->count > FEW && share > MOST_SHARE) share = MOST_SHARE;
  known->mean.value += rest * share;
  known->variance = (1 - share) * (1 - share) * variance + share * share * (total - variance);
  known->step = step;
  const double common_share = common_variance / total;
  return (Common){rest * common_share, 1 - common_share};
}

static inline void smooth_sizes(Corrections* all) {
  double variances[NUM_EDGES], added[NUM_EDGES];
  Point* smooth = all->smooth;
  int count = 0;
  // First each size by itself and those below it.
  for (int edge = 0; edge < NUM_EDGES; ++edge) {
    const Size* size = &all->sizes[edge];
    if (size->count == 0) continue;
    const double own = size->variance + OWN_DRIFT * (double)(all->step - size->step);
    smooth[count] = size->mean;
    variances[count] = own;
    added[count] = 0.0;
    if (count > 0) {
      const Point below = smooth[count - 1];
      added[count] = BETWEEN_SIZES * (size->mean.log_size - below.log_size);
      const double before = variances[count - 1] + added[count];
      const double share = before / (before + own);
      smooth[count].value = below.value + share * (size->mean.value - below.value);
      variances[count] = share * own;
    }
    count++;
  }
  for (int at = count - 2; at >= 0; at--)
    smooth[at].value +=
        variances[at] / (variances[at] + added[at + 1]) * (smooth[at + 1].value - smooth[at].value);
  all->num_smooth = count;
}

// Of a size, given as its logarithm: a straight line between measured ones; 0 without any.
static inline double correction_at(Corrections* all, double log_size) {
  if (all->num_smooth < 0) smooth_sizes(all);
  const Point* smooth = all->smooth;
  const int count = all->num_smooth;
  if (count == 0) return 0.0;
  int after = 0;
  while (after < count && smooth[after].log_size < log_size) after++;
  if (after == 0) return smooth[0].value;
  if (after == count) return smooth[count - 1].value;
  const Point low = smooth[after - 1], high = smooth[after];
  return low.value + (high.value - low.value) * (log_size - low.log_size) / (high.log_size - low.log_size);
}

#endif
