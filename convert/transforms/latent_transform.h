// What all transforms to latent attention share: sizes, the order fit -> query refit -> W_O refit.
#pragma once

#include <string>
#include <vector>

#include "convert/transform.h"

namespace cinch {

/// Numbers that a token adds to a latent layer's cache besides the key scales of QK-norm.
struct LatentSizes {
  int64_t rank = 0, rope_dim = 0;  // R, Dr
};

/// The recipe's rank and rotary width, or a split of its budget in multiples of 8. Of n numbers, 16 D/64 + n/6 stay
/// rotated: what served best for D = 64 at n = 48 (24), 96, 112 (32) and 192 (48). Throws UsageError on sizes that the
/// source cannot fill and UnsupportedError where the cache would not shrink.
LatentSizes latent_sizes(const AttentionSpec& source, const ConversionRecipe& recipe);

const Transform& weighted_transform();
const Transform& balanced_pca_transform();
const Transform& weight_svd_transform();

}  // namespace cinch
