// Rotary planes as the solvers see them, and averages of matrices over rotations.
//
// Internal coordinates of a head of D dims: P = D/2 planes, dim f and f + P are the real and imaginary part of plane f.
// Rotated planes come first; dims that the model does not rotate are paired into planes of frequency 0. A factor that
// the model puts on cos and sin (YaRN, longrope) is folded into queries and keys, so that rotations are pure.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "attention/attention_spec.h"

namespace cinch {

struct HeadPlanes {
  int64_t head_dim = 0;  // D
  int64_t planes = 0;    // P
  int64_t rotated = 0;   // planes of non-zero frequency come first
  at::Tensor order;      // (D) int64, the head's dim behind each internal dim
  at::Tensor gain;       // (D) fp64, factor from the head's dim to the internal dim of queries and keys
  at::Tensor frequency;  // (P) fp64
};

/// Planes of a layer for sequences of `length` tokens. Throws UnsupportedError for an odd head_dim.
HeadPlanes head_planes(const AttentionSpec& spec, int64_t length);

/// Rows of a projection (n*D, C) -> (n, D, C) fp64 in internal coordinates; `with_gain` for queries and keys.
at::Tensor to_internal(const HeadPlanes& planes, const at::Tensor& projection, bool with_gain);
/// The way back: (n, D, C) -> (n*D, C).
at::Tensor from_internal(const HeadPlanes& planes, const at::Tensor& heads, bool with_gain);

/// Multiplication of each plane by a complex factor (..., P), as a real matrix (..., D, D).
at::Tensor plane_map(const at::Tensor& factors);
/// Dims of the unrotated planes, (U) int64: any map among them commutes with RoPE.
at::Tensor unrotated_dims(const HeadPlanes& planes);

struct RotationTable {
  at::Tensor cos, sin;  // (T, P)
};
/// Positions first..first+count-1.
RotationTable rotation_table(const HeadPlanes& planes, int64_t first, int64_t count, const at::TensorOptions& options);
RotationTable select_positions(const RotationTable& table, const at::Tensor& positions);
/// x (..., T, D) rotated by its T positions; `inverse` rotates back.
at::Tensor rotate(const at::Tensor& x, const RotationTable& table, bool inverse = false);

/// Weighted averages over lags of R_D M R_D^T: a 2x2 block (f, f') is a complex-linear part times sum_D w_D e^{iD(w_f -
/// w_f')} plus an antilinear part times sum_D w_D e^{iD(w_f + w_f')}.
struct LagFactors {
  at::Tensor linear, antilinear;  // (P, P) complex
};
/// `weights` (C) fp64: weight of lags 0..C-1, summing to 1.
LagFactors lag_factors(const HeadPlanes& planes, const at::Tensor& weights);
/// sum_D w_D R_D m R_D^T for m (..., D, D).
at::Tensor rotation_average(const at::Tensor& m, const LagFactors& factors);
/// sum_D w_D R_D^T m R_D.
at::Tensor rotation_average_transposed(const at::Tensor& m, const LagFactors& factors);

}  // namespace cinch
