// How one row's token is chosen: what choosing.h takes, on a CPU and on cards.

#pragma once

// Declared a second time in orchestrator/row_choice.py, field by field.
struct RowChoice {
  uint64_t seed, answer, position;  // the noise's key and counter
  int64_t top_k;                    // 0 for all tokens
  double top_p;                     // 1 for all tokens
  double min_p;                     // 0 for all tokens
  float temperature;                // 0 for the largest logit, else at least 2^-126
  int32_t banned_set;               // which set of banned tokens is left out in this row, from 1; 0 for none
};
