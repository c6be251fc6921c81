// How the sm_90 latent decode lies in shared memory, and which of its compiled variants a shape takes.
#pragma once

#include <cstdint>

#include "attention/kernels/cuda/sm90_layout.h"

namespace cinch::sm90 {

constexpr int kConsumers = 2 * kWarpgroup;
constexpr int kThreads = kConsumers + kWarpgroup;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
constexpr int kMostStages = 12;
constexpr int kSharedLimit = 232448;  // bytes per block on sm_90

/// Byte offsets in shared memory.
struct SharedLayout {
  int loaded;  // 64-column blocks that TMA brings per tile
  uint32_t block, stage, q, exchange, state, barriers, total;
  int stages;
};

/// columns: accumulated by one warpgroup. stages < 2 in the result: the shape does not fit.
CINCH_HOST_DEVICE constexpr SharedLayout shared_layout(int width, int columns, bool split_columns, int tokens) {
  SharedLayout layout{};
  layout.loaded = divided_up(width, kBlockColumns);
  const int value_blocks = columns / kBlockColumns * (split_columns ? 2 : 1);
  layout.block = static_cast<uint32_t>(tokens * kRowBytes);
  layout.stage = static_cast<uint32_t>(layout.loaded > value_blocks ? layout.loaded : value_blocks) * layout.block;
  const uint32_t q = static_cast<uint32_t>(layout.loaded) * kOperandRows * kRowBytes;
  const uint32_t exchange = split_columns ? static_cast<uint32_t>(tokens * kWarpgroup) : 0;
  const uint32_t state = 4 * kOperandRows * sizeof(float);
  const uint32_t barriers = (2 * kMostStages + 4) * 8;
  const uint32_t ring = kSharedLimit - q - exchange - state - barriers;
  layout.stages = q + exchange + state + barriers > kSharedLimit ? 0 : static_cast<int>(ring / layout.stage);
  if (layout.stages > kMostStages) layout.stages = kMostStages;
  layout.q = static_cast<uint32_t>(layout.stages) * layout.stage;
  layout.exchange = layout.q + q;
  layout.state = layout.exchange + exchange;
  layout.barriers = layout.state + state;
  layout.total = layout.barriers + barriers;
  return layout;
}

/// The instances of LatentDecodeBlock.
template <int kColumnsOfGroup, bool kSplit, int kTileTokens>
struct Variant {
  static constexpr int kColumns = kColumnsOfGroup, kTokens = kTileTokens;
  static constexpr bool kSplitColumns = kSplit;
};

/// f(Variant) with the one for latent rank R <= 512 and row width R + Dr <= 640. tile_tokens: 32 or 64 where there is a
/// choice (R > 256); 0 leaves it here.
template <class F>
auto with_variant(int rank, int width, int tile_tokens, F&& f) {
  if (rank <= 64) return f(Variant<64, false, 64>{});
  if (rank <= 128) return f(Variant<128, false, 64>{});
  if (rank <= 192) return f(Variant<192, false, 64>{});
  if (rank <= 256) return f(Variant<256, false, 64>{});
  const bool narrow = rank <= 384;
  const bool fits = shared_layout(width, narrow ? 192 : 256, true, 64).stages >= 2;
  if (fits && tile_tokens != 32) return narrow ? f(Variant<192, true, 64>{}) : f(Variant<256, true, 64>{});
  return narrow ? f(Variant<192, true, 32>{}) : f(Variant<256, true, 32>{});
}

}  // namespace cinch::sm90
