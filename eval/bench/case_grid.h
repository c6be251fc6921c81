// The grid of cases that `bench kernels` measures, and how a user narrows or replaces its axes.
#pragma once

#include <optional>
#include <vector>

#include "eval/bench/decode_case.h"

namespace cinch {

/// Of a whole run on a GPU, of a minute on a GPU, of seconds on a CPU.
enum class GridSize { full, quick, small };

/// An empty list leaves an axis as the grid has it.
struct GridWish {
  GridSize size = GridSize::full;
  std::optional<AttentionKind> kind;
  std::vector<int64_t> ranks, rope_dims, v_head_dims;  // latent
  std::vector<CacheFormat> formats;                    // latent
  std::vector<int64_t> kv_heads, head_dims;            // grouped
  std::vector<int64_t> heads, batches, contexts;
  bool ragged = false;  // all cases with sequences of different lengths
};

/// Without wishes: latents of every rank at rotary widths 32 and 64 with 32 heads; the grouped shapes 32 heads of 8 and
/// of 4 KV heads and of one, 9 of 3; at batches 1, 16, 64 and contexts 2k, 8k, 32k; latents below 16 bits and
/// sequences of different lengths at some of them. An axis that is given is measured in full product with the others;
/// an axis of one kind alone leaves the other kind out. Throws UsageError on contradictions and on sizes that no kernel
/// could have.
std::vector<DecodeCase> decode_cases(const GridWish& wish);

/// Throws UsageError unless batches and contexts are sizes that can be measured.
void check_loads(const std::vector<int64_t>& batches, const std::vector<int64_t>& contexts);

}  // namespace cinch
