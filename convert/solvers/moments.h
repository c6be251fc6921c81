// Second moments of a layer's heads over the calibration windows, on the original model.
#pragma once

#include <ATen/core/Tensor.h>

#include "convert/solvers/source_heads.h"

namespace cinch {

/// fp64, in internal coordinates, means over the tokens of the windows to fit on; before RoPE, after QK-norm.
struct HeadMoments {
  at::Tensor key;    // (K, D, K, D) E k k^T
  at::Tensor query;  // (H, D, D)    E q q^T
  at::Tensor value;  // (K, D, K, D)
};
HeadMoments head_moments(const HeadStream& stream);

/// Attention mass per lag (T), summing to 1: mean over heads and query positions of the first `windows` windows.
at::Tensor measured_lags(const HeadStream& stream, int64_t windows);

/// Weights of lags 0..context-1: (1 - tail) * measured + tail * 1/(D+1), each normalised. `window` > 0 limits the lags
/// to what a sliding window lets a query see.
at::Tensor lag_weights(const at::Tensor& measured, double tail, int64_t context, int64_t window);

}  // namespace cinch
