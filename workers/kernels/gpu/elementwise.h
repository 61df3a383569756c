// What is made of the exponential, step by step as the CPU kernels do it (workers/kernels/elementwise.h).

#pragma once

#include "device.h"

#include "exponential.h"

DEVICE float sigmoid_one(float x) { return divide(1.0f, 1.0f + exp_one(-x)); }

// `limit` is infinite where there is none.
DEVICE float swiglu_one(float gate, float up, float limit) {
  const float act = divide(gate, 1.0f + exp_one(-gate));
  const float act_clamped = act > limit ? limit : act;
  const float up_clamped = up > limit ? limit : (up < -limit ? -limit : up);
  return act_clamped * up_clamped;
}
