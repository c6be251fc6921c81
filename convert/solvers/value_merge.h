// Shared values: the best subspace of attention-averaged values in the metric of W_O, then alternating refits of W_O
// and of the value map.
#pragma once

#include "convert/solvers/merged_heads.h"

namespace cinch {

/// Normal equations of the attention output Y on attention-averaged source values, on the original stream, with the
/// attention probabilities of the merged queries and keys and token weights (source_heads.h). z_h = sum_n p_h,mn
/// (stacked values of the group of h).
struct ValueMoments {
  at::Tensor
      gram;  // (H, gD, H, gD) sum w z_h z_h'^T; or, where that would not fit, only the blocks of one head (H, gD, gD)
  at::Tensor cross;  // (H, E, gD) sum w Y z_h^T; undefined without the full gram
  double power = 0;  // sum w |Y|^2
  bool full() const { return cross.defined(); }
};
ValueMoments value_moments(const LayerProblem& problem, const HeadStream& stream, const ResidualPath& path,
                           const MergedHeads& merged);

/// Sets merged.value and merged.o from the top eigenvectors of each group's averaged values, canonical basis (gauge.h);
/// `o` is the source's (H, E, D). Returns the share of energy kept.
double start_values(const ValueMoments& moments, const at::Tensor& o, MergedHeads& merged);

/// sum w |Y - sum_h o_h value z_h|^2 / sum w |Y|^2.
double value_loss(const ValueMoments& moments, const MergedHeads& merged);

struct ValueRefitOptions {
  int rounds = 3;
  int steps = 8;               // of conjugate gradients on the value map
  double output_ridge = 1e-2;  // towards the current W_O
  double value_damping = 1e-4;
};
/// Rounds of [ridge W_O given the values; conjugate gradients on the values given W_O]. The loss does not rise.
void alternate_values(const ValueMoments& moments, const ValueRefitOptions& options, MergedHeads& merged);

}  // namespace cinch
