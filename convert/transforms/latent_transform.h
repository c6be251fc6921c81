// What all transforms to latent attention share: sizes, the order fit -> query refit -> W_O refit.
#pragma once

#include <string>
#include <vector>

#include "convert/solvers/rotary_slots.h"
#include "convert/transform.h"

namespace cinch {

/// What a token adds to a latent layer's cache besides the key scales of QK-norm (which stay at 16 bits), and the
/// precision that this is planned for.
struct LatentSizes {
  int64_t rank = 0, rope_dim = 0;  // R, Dr
  int bits = 16;

  /// Bytes of it relative to the source's 16-bit cache.
  double kv_ratio(const AttentionSpec& source) const;
};

/// The recipe's rank and rotary width, or a split of its budget in multiples of 8. Of n numbers, 16 D/64 + n/6 stay
/// rotated: what served best for D = 64 at n = 48 (24), 96, 112 (32) and 192 (48). A budget that buys more numbers at
/// its precision than the source has keeps 8 less than these. Bits left open: 4, or 8 for budgets from 40 %, where four
/// bits would cost more than the rank that eight leave. Throws UsageError on sizes that the source cannot fill and
/// UnsupportedError where the cache would grow.
LatentSizes latent_sizes(const AttentionSpec& source, const ConversionRecipe& recipe);

/// What a layer has to say about the slots of a rotary key of this width, as the weighted method asks it.
RotarySurvey rotary_survey(const SourceHeads& heads, const LatentMoments& moments, int64_t rope_dim,
                           const ConversionRecipe& recipe);

const Transform& weighted_transform();
const Transform& balanced_pca_transform();
const Transform& weight_svd_transform();

}  // namespace cinch
