// Refits of queries and of the shared key in the metric of the softmax.
//
// To second order the divergence between softmax(l) and softmax(l + e) is half the p-weighted variance of e, so that
// both refits minimise
//   sum_h weight_h mean_m sum_n p_mn (e_mn - sum_n' p_mn' e_mn')^2
// with e the error of the raw logit (q . k before scale) of query position m and key n, p the original probabilities
// (after the soft cap, whose slope multiplies e), over sampled query positions m and all keys n they see.
#pragma once

#include <vector>

#include "convert/solvers/merged_heads.h"

namespace cinch {

/// What the refits need of one calibration window.
struct FisherWindow {
  at::Tensor keys;     // (K, T, D) source keys before RoPE
  at::Tensor queries;  // (H, M, D) source queries before RoPE at the sampled positions
  at::Tensor weight;   // (H, M, T) p, times the squared slope of the soft cap
  at::Tensor mean;     // (H, M, T) p, times the slope
};

struct FisherSample {
  std::vector<FisherWindow> windows;
  RotationTable keys;      // (T, P) of all positions
  RotationTable queries;   // (M, P) of the sampled positions
  at::Tensor head_weight;  // (H) fp64: spread of each head's values through W_O under p, of mean 1
};

/// `windows` windows with `positions` query positions each, evenly spread from T/positions to T-1.
FisherSample fisher_sample(const HeadStream& stream, const SourceHeads& heads, int64_t windows, int64_t positions);

/// Mean over sampled queries of the loss above, per query head (H) fp64; unweighted.
at::Tensor fisher_loss(const FisherSample& sample, const MergedHeads& merged);

/// `steps` preconditioned conjugate-gradient steps on the query map of each head. `damping` holds the maps back towards
/// where they are, in units of the Hessian's Kronecker approximation.
void refit_queries(const FisherSample& sample, MergedHeads& merged, int steps, double damping);

/// The same on merged.key. `moment` is E k k^T (K, D, K, D).
void refit_keys(const FisherSample& sample, const at::Tensor& moment, MergedHeads& merged, int steps, double damping);

}  // namespace cinch
