#include "eval/bench/case_grid.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/errors.h"

namespace cinch {
namespace {

using Sizes = std::vector<int64_t>;

struct GroupedShape {
  int64_t n_heads, n_kv_heads, head_dim;
};

/// The axes of one size of the grid.
struct Axes {
  Sizes ranks, rope_dims, heads, batches, contexts;
  std::vector<GroupedShape> shapes;
};

Axes axes_of(GridSize size) {
  if (size == GridSize::small) return {{64, 128}, {32}, {8}, {1, 4}, {256, 1024}, {{8, 2, 64}, {9, 3, 64}, {8, 1, 64}}};
  if (size == GridSize::quick)
    return {{64, 128, 256, 512}, {64}, {32}, {1, 64}, {8192}, {{32, 8, 128}, {9, 3, 64}, {32, 1, 128}}};
  return {{64, 96, 128, 192, 256, 320, 384, 448, 512},           {32, 64}, {32}, {1, 16, 64}, {2048, 8192, 32768},
          {{32, 8, 128}, {32, 4, 128}, {9, 3, 64}, {32, 1, 128}}};
}

Sizes or_default(const Sizes& wish, const Sizes& fallback) { return wish.empty() ? fallback : wish; }

bool names_latent(const GridWish& wish) {
  return !wish.ranks.empty() || !wish.rope_dims.empty() || !wish.v_head_dims.empty() ||
         std::any_of(wish.formats.begin(), wish.formats.end(),
                     [](CacheFormat format) { return format != CacheFormat::sixteen_bit; });
}
bool names_grouped(const GridWish& wish) { return !wish.kv_heads.empty() || !wish.head_dims.empty(); }
bool names_nothing(const GridWish& wish) {
  return !names_latent(wish) && !names_grouped(wish) && wish.formats.empty() && wish.heads.empty() &&
         wish.batches.empty() && wish.contexts.empty() && !wish.ragged;
}

void check(const GridWish& wish) {
  const char* const latent = "--rank, --rope-dim, --v-head-dim and --kv-bits below 16 are of latents";
  const char* const grouped = "--kv-heads and --head-dim are of grouped-query attention";
  if (names_latent(wish) && names_grouped(wish)) {
    throw UsageError(fmt::format("{}, {}: together they name no case", latent, grouped), "give those of one kind");
  }
  if (wish.kind == AttentionKind::grouped_query && names_latent(wish))
    throw UsageError(fmt::format("{}, not of --kind grouped", latent), "leave them out, or give --kind latent");
  if (wish.kind == AttentionKind::latent && names_grouped(wish))
    throw UsageError(fmt::format("{}, not of --kind latent", grouped), "leave them out, or give --kind grouped");
}

void require(const char* flag, const Sizes& values, int64_t least, int64_t most, int64_t step) {
  for (const int64_t value : values) {
    if (value >= least && value <= most && value % step == 0) continue;
    const std::string rule =
        step > 1 ? fmt::format("multiples of {} in {} to {}", step, least, most) : fmt::format("{} to {}", least, most);
    throw UsageError(fmt::format("{}: expected {}, found {}", flag, rule, value));
  }
}

void check_sizes(const GridWish& wish) {
  require("--rank", wish.ranks, 16, 1024, 8);
  require("--rope-dim", wish.rope_dims, 8, 128, 8);
  require("--v-head-dim", wish.v_head_dims, 0, 512, 8);
  require("--head-dim", wish.head_dims, 32, 256, 8);
  require("--heads", wish.heads, 1, 1024, 1);
  require("--kv-heads", wish.kv_heads, 1, 1024, 1);
  check_loads(wish.batches, wish.contexts);
}

std::vector<GroupedShape> shapes_of(const GridWish& wish, const Axes& axes) {
  if (wish.heads.empty() && !names_grouped(wish)) return axes.shapes;
  const GroupedShape first = axes.shapes.front();
  std::vector<GroupedShape> shapes;
  for (const int64_t n_heads : or_default(wish.heads, {first.n_heads})) {
    for (const int64_t n_kv_heads : or_default(wish.kv_heads, {first.n_kv_heads})) {
      if (n_heads % n_kv_heads != 0) {
        throw UsageError(fmt::format("--kv-heads {} does not divide --heads {}", n_kv_heads, n_heads),
                         "give both, or --kind latent");
      }
      for (const int64_t head_dim : or_default(wish.head_dims, {first.head_dim}))
        shapes.push_back({n_heads, n_kv_heads, head_dim});
    }
  }
  return shapes;
}

/// The case at every batch and context.
void add_loads(const GridWish& wish, const Axes& axes, DecodeCase decode, std::vector<DecodeCase>& cases) {
  decode.ragged = wish.ragged;
  for (const int64_t batch : or_default(wish.batches, axes.batches)) {
    for (const int64_t context : or_default(wish.contexts, axes.contexts)) {
      decode.batch = batch;
      decode.context = context;
      cases.push_back(decode);
    }
  }
}

DecodeCase latent(CacheFormat format, int64_t n_heads, int64_t rank, int64_t rope_dim, int64_t v_head_dim = 0) {
  return {.format = format,
          .n_heads = n_heads,
          .kv_lora_rank = rank,
          .qk_rope_head_dim = rope_dim,
          .v_head_dim = v_head_dim};
}

void add_latents(const GridWish& wish, const Axes& axes, std::vector<DecodeCase>& cases) {
  const auto formats = wish.formats.empty() ? std::vector{CacheFormat::sixteen_bit} : wish.formats;
  for (const CacheFormat format : formats) {
    for (const int64_t rope_dim : or_default(wish.rope_dims, axes.rope_dims)) {
      for (const int64_t n_heads : or_default(wish.heads, axes.heads)) {
        for (const int64_t rank : or_default(wish.ranks, axes.ranks)) {
          for (const int64_t v_head_dim : or_default(wish.v_head_dims, {0}))
            add_loads(wish, axes, latent(format, n_heads, rank, rope_dim, v_head_dim), cases);
        }
      }
    }
  }
}

void add_grouped(const GridWish& wish, const Axes& axes, std::vector<DecodeCase>& cases) {
  for (const GroupedShape& shape : shapes_of(wish, axes)) {
    const DecodeCase decode{.kind = AttentionKind::grouped_query,
                            .n_heads = shape.n_heads,
                            .n_kv_heads = shape.n_kv_heads,
                            .head_dim = shape.head_dim};
    add_loads(wish, axes, decode, cases);
  }
}

/// What the products leave out: fewer bits, the value map, different lengths, each at some sizes.
void add_extras(const GridWish& wish, const Axes& axes, std::vector<DecodeCase>& cases) {
  const int64_t rope_dim = axes.rope_dims.back(), n_heads = axes.heads.front();
  const int64_t batch = axes.batches.back(), context = axes.contexts[axes.contexts.size() / 2];
  const auto add = [&](DecodeCase decode, int64_t requests, bool ragged) {
    decode.batch = requests;
    decode.context = context;
    decode.ragged = ragged;
    cases.push_back(decode);
  };
  const Sizes ranks = {axes.ranks[std::min<size_t>(2, axes.ranks.size() - 1)], axes.ranks.back()};
  for (const int64_t rank : ranks[0] == ranks[1] ? Sizes{ranks[0]} : ranks) {
    if (wish.kind == AttentionKind::grouped_query) break;
    for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4})
      add_loads(wish, axes, latent(format, n_heads, rank, rope_dim), cases);
    add(latent(CacheFormat::sixteen_bit, n_heads, rank, rope_dim, 128), 1, false);
    add(latent(CacheFormat::sixteen_bit, n_heads, rank, rope_dim), batch, true);
  }
  if (wish.kind == AttentionKind::latent) return;
  const GroupedShape shape = axes.shapes.front();
  add({.kind = AttentionKind::grouped_query,
       .n_heads = shape.n_heads,
       .n_kv_heads = shape.n_kv_heads,
       .head_dim = shape.head_dim},
      batch, true);
}

}  // namespace

std::vector<DecodeCase> decode_cases(const GridWish& wish) {
  check(wish);
  check_sizes(wish);
  const Axes axes = axes_of(wish.size);
  std::vector<DecodeCase> cases;
  if (wish.kind != AttentionKind::grouped_query && !names_grouped(wish)) add_latents(wish, axes, cases);
  if (wish.kind != AttentionKind::latent && !names_latent(wish)) add_grouped(wish, axes, cases);
  if (names_nothing(wish)) add_extras(wish, axes, cases);
  return cases;
}

void check_loads(const std::vector<int64_t>& batches, const std::vector<int64_t>& contexts) {
  require("--batch", batches, 1, 65536, 1);
  require("--context", contexts, 1, int64_t{1} << 24, 1);
}

}  // namespace cinch
