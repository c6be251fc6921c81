// The published conversion to a latent, for comparison: TransMLA (Meng et al., arXiv 2502.07864, sections 4.2-4.4 and
// its code), and the same without activations.
//
// RoRoPE: planes of `fold` adjacent frequencies and all KV heads are turned by the real eigenbasis of the key
// covariance, real and imaginary parts pooled. The leading components of every group stay rotated, component s at the
// frequency s/n of the way through its group; the others lose their rotation. The joint latent is the principal
// components of [k_N / alpha; v] with alpha the ratio of their mean norms. Up-maps are those components.
#pragma once

#include <ATen/core/Tensor.h>

#include "convert/solvers/latent_fit.h"

namespace cinch {

/// E z z^T over all tokens, (2KD, 2KD).
at::Tensor activation_gram(const LatentMoments& moments);
/// The same if inputs were white: [W_K; W_V][W_K; W_V]^T.
at::Tensor weight_gram(const SourceHeads& heads);

/// Throws UsageError unless `fold` divides the planes and their groups can share rotary_dim / 2 slots equally.
RotaryMaps folded_rotary_maps(const SourceHeads& heads, const at::Tensor& gram, int64_t rotary_dim, int64_t fold);

/// `balanced`: keys are divided by alpha. Throws UsageError as latent_basis.
LatentBasis joint_pca(const SourceHeads& heads, const at::Tensor& gram, const RotaryMaps& rotary, int64_t rank,
                      bool balanced);

}  // namespace cinch
