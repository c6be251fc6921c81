#include "convert/transforms/latent_sizes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attention/cache_precision.h"
#include "core/errors.h"

namespace cinch {
namespace {

constexpr int64_t kStep = LatentSizes::kStep;
constexpr double kEightBitsFrom = 0.4;
constexpr double kRoundOff = 1e-6;  // of a number of cached elements

double bits_per_number(int bits) { return CachePrecision{.bits = bits}.bits_per_number(); }
int64_t key_scales(const AttentionSpec& spec) { return spec.qk_norm ? spec.n_kv_heads : 0; }

LatentSizes split_budget(const AttentionSpec& source, double budget, int bits) {
  const auto bits16 = budget * 16 * static_cast<double>(source.kv_elements());
  const auto elements = std::min(
      static_cast<int64_t>((bits16 - 16 * static_cast<double>(key_scales(source))) / bits_per_number(bits) + kRoundOff),
      bits < 16 ? source.kv_elements() - kStep - key_scales(source) : source.kv_elements());
  const int64_t n = elements / kStep * kStep;
  if (n < 2 * kStep) {
    throw UsageError(
        fmt::format("--kv-budget {:.4g}: leaves {} of {} numbers per token and layer, at least {} are needed", budget,
                    std::max<int64_t>(elements, 0), source.kv_elements(), 2 * kStep),
        "give a larger budget");
  }
  const double wanted = static_cast<double>(source.head_dim) / 4 + static_cast<double>(n) / 6;
  const int64_t most = std::min(n - kStep, source.n_kv_heads * source.head_dim) / kStep * kStep;
  const int64_t rope_dim = std::clamp<int64_t>(std::llround(wanted / kStep) * kStep, std::min(kStep, most), most);
  return {std::min(n - rope_dim, source.kv_elements() - rope_dim), rope_dim, bits};
}

void check_sizes(const AttentionSpec& source, const LatentSizes& sizes) {
  const int64_t most_rank = source.kv_elements() - sizes.rope_dim;
  if (sizes.rope_dim % 2 != 0 || sizes.rope_dim > source.n_kv_heads * source.head_dim) {
    throw UsageError(fmt::format("--rope-dim {}: an even number up to {} can stay rotated", sizes.rope_dim,
                                 source.n_kv_heads * source.head_dim));
  }
  if (sizes.rank > most_rank) {
    throw UsageError(fmt::format("--rank {}: beside {} rotary numbers a latent of {} holds everything", sizes.rank,
                                 sizes.rope_dim, most_rank),
                     fmt::format("give a rank up to {}", most_rank));
  }
  const int64_t elements = sizes.rank + sizes.rope_dim + key_scales(source);
  if (elements > source.kv_elements()) {
    throw UnsupportedError(
        fmt::format("--to mla: the cache would grow: {} numbers per token and layer now, {} + {}{} then",
                    source.kv_elements(), sizes.rank, sizes.rope_dim,
                    key_scales(source) > 0 ? fmt::format(" + {} key scales", key_scales(source)) : ""),
        "give a smaller --rank or --rope-dim");
  }
}

}  // namespace

double LatentSizes::kv_ratio(const AttentionSpec& source) const {
  const double own =
      static_cast<double>(rank + rope_dim) * bits_per_number(bits) / 16 + static_cast<double>(key_scales(source));
  return own / static_cast<double>(source.kv_elements());
}

LatentSizes latent_sizes(const AttentionSpec& source, const ConversionRecipe& recipe) {
  const int bits = recipe.kv_bits != 0 ? recipe.kv_bits : recipe.kv_budget < kEightBitsFrom ? 4 : 8;
  const LatentSizes sizes = recipe.kv_budget > 0 ? split_budget(source, recipe.kv_budget, bits)
                                                 : LatentSizes{recipe.rank, recipe.rope_dim, bits};
  check_sizes(source, sizes);
  if (recipe.slots == SlotRule::geometric && sizes.rope_dim > source.rope.rotary_dim) {
    throw UsageError(fmt::format("--slots geometric: {} numbers of a head are rotated, --rope-dim {} is more",
                                 source.rope.rotary_dim, sizes.rope_dim),
                     "give a smaller --rope-dim or --kv-budget, or --slots shared");
  }
  return sizes;
}

}  // namespace cinch
