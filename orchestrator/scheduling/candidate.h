// A sequence that may be drafted for, and the rows that MTP layers must take in first.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

// With so many rows before them, drafts hold about as often as with all (docs/scheduler.md).
constexpr int64_t CONTEXT_ROWS = 32;

// Drafts of each sequence, in the order of those that they are for.
using Depths = std::vector<int>;

// `most`: drafts that could still become its output; `behind`: rows that each MTP layer would take in before it drafts,
// nothing for none.
struct Candidate {
  int64_t sequence;
  int most;
  std::vector<int64_t> behind;

  // So many drafts, or as many as could become output.
  int upto(int depth) const { return std::max(0, std::min(depth, most)); }

  // Whether more rows than usual wait for some MTP layer, because nobody asked it for drafts.
  bool is_behind() const { return std::any_of(behind.begin(), behind.end(), is_unusual); }

  // The first MTP layers that have all rows but the usual ones.
  int ready_layers() const { return (int)(std::find_if(behind.begin(), behind.end(), is_unusual) - behind.begin()); }

  // Rows that had waited for each of the first `depth` MTP layers, but for usual ones; none for none.
  std::vector<int64_t> to_take_in(int depth) const {
    const auto end = behind.begin() + std::min<size_t>(std::max(depth, 0), behind.size());
    if (std::none_of(behind.begin(), end, is_unusual)) return {};
    std::vector<int64_t> rows(behind.begin(), end);
    std::replace_if(rows.begin(), rows.end(), [](int64_t of) { return !is_unusual(of); }, 0);
    return rows;
  }

 private:
  // Rows that wait for an MTP layer where it drafts in every step, at most.
  static constexpr int64_t USUAL_ROWS = 8;

  static bool is_unusual(int64_t rows) { return rows > USUAL_ROWS; }
};
