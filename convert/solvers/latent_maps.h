// Attention through a latent in the solvers' coordinates: what a fit yields, and what it computes.
//
// Token n caches c_n = down x_n (R) and k_n = rotary_key x_n (Dr), the latter rotated by its position at inv_freq.
// Head h maps its original query q (before RoPE, after QK-norm) to A_h q = [a; b], b rotated by the query's position;
// the score is a . c_n + b . k_n, divided by the rms of the original key where the source has QK-norm; scale, soft cap
// and window are the source's. The head's output is value_up_h sum_n p_n c_n.
#pragma once

#include <ATen/core/Tensor.h>

#include "convert/solvers/source_heads.h"

namespace cinch {

/// fp64. D in internal coordinates (rotation.h); C = E, or E + 1 with biases, as SourceHeads.
struct LatentMaps {
  at::Tensor down;                              // (R, C)
  at::Tensor rotary_key;                        // (Dr, C), pairs (re, im) next to each other
  at::Tensor query;                             // (H, R + Dr, D) A_h
  at::Tensor value_up;                          // (H, D, R)
  at::Tensor o;                                 // (H, E, D)
  at::Tensor o_bias;                            // (E), or undefined
  at::Tensor inv_freq;                          // (Dr/2)
  double kept_energy_k = 1, kept_energy_v = 1;  // shares of the weighted energy that the latent keeps

  int64_t rank() const { return down.size(0); }
  int64_t rotary_dim() const { return rotary_key.size(0); }
};

/// Rotates the last `2 P` numbers of x (..., T, n), pairs next to each other; `inverse` rotates back.
at::Tensor rotate_pairs(const at::Tensor& x, const RotationTable& table, bool inverse = false);
/// Of positions 0..count-1 at inv_freq (P).
RotationTable pair_table(const at::Tensor& inv_freq, int64_t count, const at::TensorOptions& options);

/// The obvious computation, window by window, in the stream's dtype.
class LatentForward {
 public:
  LatentForward(const HeadStream& stream, const SourceHeads& heads, const LatentMaps& maps);

  /// [c; rotated k] of an input (T, C), (T, R + Dr).
  at::Tensor features(const at::Tensor& input) const;
  /// Head outputs before o_proj, (T, H*D), of an input (T, C).
  at::Tensor head_outputs(const at::Tensor& input) const;
  /// Through o_proj, with its bias: (T, E).
  at::Tensor output(const at::Tensor& head_outputs) const;

 private:
  const HeadStream& stream_;
  const SourceHeads& heads_;
  RotationTable table_;
  at::Tensor down_;      // (C, R + Dr)
  at::Tensor query_;     // (H, D, R + Dr)
  at::Tensor value_up_;  // (H, R, D)
  at::Tensor o_;         // (H*D, E)
  at::Tensor o_bias_;    // (E) or undefined
  at::Tensor mask_;      // (T, T)
};

}  // namespace cinch
