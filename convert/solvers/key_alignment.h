// Shared keys of one group from second moments alone: a closed-form start that commutes with RoPE exactly, then
// alternating least squares that may mix frequencies, on the error of the logits averaged over lags.
#pragma once

#include "convert/solvers/rotation.h"

namespace cinch {

/// Shared key = key z with z the stacked source keys of the group; a query q of source head a becomes decoder[a]^T q.
struct KeyMaps {
  at::Tensor key;      // (D, g*D) fp64
  at::Tensor decoder;  // (g, D, D) fp64
  double kept = 1.0;   // share of the key energy that the start keeps
};

struct KeyProblem {
  at::Tensor key;    // (g, D, g, D) E k k^T, canonical basis (gauge.h)
  at::Tensor query;  // (g, D, D) E q q^T summed over the query heads of each source head
};

/// Complex rank one per plane: u the top eigenvector of E k_a conj(k_b), shared key sum_a conj(u_a) k_a, decoder u_a.
/// Among unrotated dims the real best subspace. Exact where the heads are copies of each other up to a factor per
/// plane.
KeyMaps rank_one_keys(const HeadPlanes& planes, const KeyProblem& problem);

/// sum_a E_{D ~ w} E |q_a^T (R_D k_a - decoder_a R_D key z)|^2, queries and keys taken as independent.
double logit_loss(const KeyMaps& maps, const KeyProblem& problem, const LagFactors& lags);

/// Alternating least squares on logit_loss from `start`. Each half step is damped towards where it stands (1e-4 of the
/// mean diagonal), so that the loss never rises and an exact start stays.
KeyMaps alternate_keys(KeyMaps start, const KeyProblem& problem, const LagFactors& lags, int iterations);

}  // namespace cinch
