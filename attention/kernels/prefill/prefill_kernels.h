// The kernels as nvcc compiles them and as the warp emulator runs them, and which ones there are.
#pragma once

#include "attention/kernels/prefill/forward_block.h"
#include "attention/kernels/prefill/gradient_block.h"

namespace cinch::prefill {

/// Thread blocks of a launch.
CINCH_HOST_DEVICE int64_t grid_of(const CinchPrefill& work, int blocks) {
  return int64_t{work.batch} * work.n_kv_heads * blocks;
}

/// Calls visitor.visit<T, row tiles, units>() of the forward kernel that a tiling names; T as given.
template <class T, class Visitor>
auto visit_forward(const ForwardTiling& t, Visitor&& visitor) {
  if (t.units == 4) return visitor.template visit<T, 2, 4>();
  return t.units == 8 ? visitor.template visit<T, 2, 8>() : visitor.template visit<T, 1, 16>();
}
/// Calls visitor.visit<T, pass, units>() of the gradient kernel that a tiling names.
template <class T, class Visitor>
auto visit_gradient(const GradientTiling& t, Visitor&& visitor) {
  if (t.pass == kOfKeys) return visitor.template visit<T, kOfKeys, 16>();
  if (t.pass == kOfValues) return visitor.template visit<T, kOfValues, 16>();
  if (t.pass == kOfKeysAndValues) {
    return t.units == 4 ? visitor.template visit<T, kOfKeysAndValues, 4>()
                        : visitor.template visit<T, kOfKeysAndValues, 8>();
  }
  if (t.units == 4) return visitor.template visit<T, kOfQueries, 4>();
  return t.units == 8 ? visitor.template visit<T, kOfQueries, 8>() : visitor.template visit<T, kOfQueries, 16>();
}

}  // namespace cinch::prefill
