// How many numbers a latent keeps per token, and at which precision: from a recipe's sizes or its budget in bytes.
#pragma once

#include <cstdint>

#include "attention/attention_spec.h"
#include "convert/conversion_recipe.h"

namespace cinch {

/// What a token adds to a latent layer's cache besides the key scales of QK-norm (which stay at 16 bits), and the
/// precision that this is planned for.
struct LatentSizes {
  static constexpr int64_t kStep = 8;  // of sizes that a budget chooses

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

}  // namespace cinch
