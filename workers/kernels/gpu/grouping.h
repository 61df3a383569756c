// Which rows meet which expert: the (row, place) pairs of a layer, grouped by expert.

#pragma once

#include "warp.h"

// For rows whose experts' ids are on the card. A pair whose expert has no slot is nobody's entry here. Entries stand by
// expert, and within one in the order of the pairs, so that equal rows always give equal tables.
struct GroupArgs {
  const int32_t* expert_ids;  // [rows * top_k], -1 for none
  const int32_t* slots;       // [num_experts]: the slot of each expert, -1 where it is not here
  int32_t* group_starts;      // [num_groups + 1], as in LinearArgs
  int32_t* group_slots;       // [num_groups]
  int32_t* counts;            // [2]: groups, entries
  int32_t* entry_rows;        // [entries]
  int32_t* places;            // [rows * top_k]: each pair's entry, -1 where it has none
  uint8_t* flags;             // [rows], set to 0; null where they are kept
  int64_t rows, top_k, num_experts;  // at most 1024 experts
};

constexpr int MOST_EXPERTS = 1024;
constexpr int PAIRS_AT_ONCE = 2048;

// Entries and groups before this thread's expert: an entry in the low half, a group in the high one. All threads come here.
DEVICE uint64_t sum_before(uint64_t mine, uint64_t* all) {
  __shared__ uint64_t of_warp[MOST_EXPERTS / WARP];
  uint64_t upto = mine;
  UNROLL for (int by = 1; by < WARP; by *= 2) {
    const uint64_t other = __shfl_sync(ALL_LANES, upto, lane_of_warp() - by);
    if (lane_of_warp() >= by) upto += other;
  }
  if (lane_of_warp() == WARP - 1) of_warp[warp_of_block()] = upto;
  __syncthreads();
  uint64_t before = 0, total = 0;
  for (int warp = 0; warp < (int)(blockDim.x / WARP); ++warp) {
    if (warp < warp_of_block()) before += of_warp[warp];
    total += of_warp[warp];
  }
  *all = total;
  return before + upto - mine;
}

// One block, a thread for each expert. Each looks through all pairs, twice: what lies in shared memory is read by all
// threads at once, so a pair costs a few cycles. 8 rows of 8 experts take less than a launch, and 256 rows (2,048 pairs)
// some microseconds, where their experts take milliseconds. So nothing is sorted, and no order depends on luck.
KERNEL group_entries(const GroupArgs a) {
  __shared__ int32_t ids[PAIRS_AT_ONCE];
  const int32_t expert = (int32_t)threadIdx.x;
  const int64_t pairs = a.rows * a.top_k;
  const int32_t slot = expert < a.num_experts ? a.slots[expert] : -1;

  uint32_t count = 0;
  for (int64_t first = 0; first < pairs; first += PAIRS_AT_ONCE) {
    const int here = (int)(pairs - first < PAIRS_AT_ONCE ? pairs - first : PAIRS_AT_ONCE);
    __syncthreads();
    for (int i = threadIdx.x; i < here; i += blockDim.x) {
      ids[i] = a.expert_ids[first + i];
      const bool known = ids[i] >= 0 && ids[i] < a.num_experts;
      if (!known || a.slots[ids[i]] < 0) a.places[first + i] = -1;
    }
    __syncthreads();
    for (int i = 0; i < here; ++i) count += ids[i] == expert;
  }
  if (slot < 0) count = 0;

  uint64_t all;
  const uint64_t before = sum_before(count == 0 ? 0 : count | 1ull << 32, &all);
  uint32_t entry = (uint32_t)before;
  if (count > 0) {
    a.group_starts[before >> 32] = (int32_t)entry;
    a.group_slots[before >> 32] = slot;
  }
  if (threadIdx.x == 0) {
    a.group_starts[all >> 32] = (int32_t)(uint32_t)all;
    a.counts[0] = (int32_t)(all >> 32);
    a.counts[1] = (int32_t)(uint32_t)all;
  }

  for (int64_t first = 0; first < pairs; first += PAIRS_AT_ONCE) {
    const int here = (int)(pairs - first < PAIRS_AT_ONCE ? pairs - first : PAIRS_AT_ONCE);
    if (pairs > PAIRS_AT_ONCE) {
      __syncthreads();
      for (int i = threadIdx.x; i < here; i += blockDim.x) ids[i] = a.expert_ids[first + i];
      __syncthreads();
    }
    if (count > 0) {
      for (int i = 0; i < here; ++i) {
        if (ids[i] != expert) continue;
        a.entry_rows[entry] = (int32_t)((first + i) / a.top_k);
        a.places[first + i] = (int32_t)entry++;
      }
    }
  }
  if (a.flags != nullptr) {
    for (int64_t t = threadIdx.x; t < a.rows; t += blockDim.x) a.flags[t] = 0;
  }
}

// Some experts of a layer get other slots. The change comes with the launch, so that no memory of the host must wait for it.
constexpr int SLOTS_AT_ONCE = 32;
struct SetSlotsArgs {
  int32_t* slots;  // [num_experts]
  int64_t count;
  int32_t experts[SLOTS_AT_ONCE], values[SLOTS_AT_ONCE];
};

KERNEL set_slots(const SetSlotsArgs a) {
  const int i = (int)threadIdx.x;
  if (i < a.count) a.slots[a.experts[i]] = a.values[i];
}
