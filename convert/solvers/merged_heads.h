// The shared heads that a solver has found, as linear maps of the source heads, and their way back to weights.
#pragma once

#include "convert/solvers/source_heads.h"

namespace cinch {

/// fp64, in the coordinates of the SourceHeads they belong to. Groups are contiguous: group j shares the g = K/G source
/// KV heads j*g..j*g+g-1.
struct MergedHeads {
  at::Tensor key;    // (G, D, g, D): shared key = sum_a key[j, :, a] k_a
  at::Tensor query;  // (H, D, D): query of the shared key = query[h] q_h
  at::Tensor value;  // (G, D, g, D): shared value = sum_a value[j, :, a] v_a
  at::Tensor o;      // (H, E, D): o_proj per head on the shared value
};

/// Weights of `target` in the problem's dtype: projections as mapped, biases mapped with them, o_proj of `merged`. Not
/// for QK-norm.
GroupedQueryWeights merged_weights(const LayerProblem& problem, const SourceHeads& heads, const MergedHeads& merged);

/// (H, E, D) -> o_proj (E, H*D) in `options`.
at::Tensor joined_output(const at::Tensor& o, const at::TensorOptions& options);

}  // namespace cinch
