// How one decode step is laid out over thread blocks, warps and shared memory. Chosen on the host (choose_tiling) from
// the step's shape and what a multiprocessor has; the tile routines read it.
//
// A thread block takes one part of the split plan, one cache head, one block of query heads ("rows") and one block of
// value columns. It streams the part's tokens through a ring of slabs of 16 tokens in shared memory. Its warps stand in
// `row_groups` groups of `warps`; each group holds row_tiles x 16 rows and takes `warps` slabs (a "step") at a time:
// for the scores each warp takes one slab, for the values the `column_warps` warps of a team share the columns between
// them and the team's slabs. Teams of one warp keep probabilities in registers; teams of more exchange them.
//
// Pages of fewer bits than 16 come through a ring of stages, each a step's bytes, and are turned into the slabs of one
// step.
#pragma once

#include <stdint.h>

#include "attention/kernels/decode/decode_abi.h"
#include "attention/kernels/decode/page_layout.h"
#include "attention/kernels/warp/device.h"

namespace cinch::decode {

constexpr int kSlab = 16;  // tokens; the depth of one mma
constexpr int kUnit = 16;  // value columns: two mma widths, what one ldmatrix brings
constexpr int kMaxThreads = 256;
constexpr int kBlockSlabs = CINCH_DECODE_PAGE / kSlab;

struct Tiling {
  // The shape, said once for both kinds.
  int32_t cache_heads;    // K, or 1 for a latent
  int32_t rows;           // query heads that meet one cache head: H / cache_heads
  int32_t key_columns;    // of a dot product: D, or R + rotary columns
  int32_t value_columns;  // D or R
  int32_t scale_columns;  // K with key scales, else 0

  // Which compiled kernel, and its warps.
  int32_t row_tiles;     // mma tiles of 16 rows per row group: 1, 2
  int32_t units;         // compiled value units per warp: 4, 8
  int32_t column_warps;  // warps per team: 1, 2, 4
  int32_t warps;         // per row group: 4, 2, 1; a multiple of column_warps
  int32_t warp_bits;     // log2 of warps
  int32_t row_groups;

  int32_t row_blocks, column_blocks, parts;  // the grid: parts x (cache_heads * row_blocks * column_blocks)
  int32_t block_units;                       // value units of a column block
  int32_t warp_units;                        // value units of a warp, at most `units`
  int32_t merge_groups;                      // groups of a thread block that share a sequence's parts in the combine
  int32_t value_rows;                        // rows of value_map taken at once by a thread block of the combine
  int32_t resident;                          // thread blocks per multiprocessor

  // Shared memory, in bytes from its begin; rows are odd multiples of 16 bytes apart, so that the 8 rows of an 8x8
  // matrix lie in different banks.
  int32_t query_pitch;
  int32_t key_pitch, value_pitch;  // of a token in a slab
  int32_t value_offset;            // of the values in a slab; 0 where they are the leading key columns
  int32_t scale_offset;            // of the key scales in a token
  int32_t slab_bytes, slabs;
  int32_t weight_offset;  // probabilities that teams exchange: (rows, step tokens)
  int32_t weight_pitch;
  int32_t state_offset;  // maxima and sums of warps: (row groups, warps, rows of a group) pairs of floats
  int32_t ring_offset;
  PageLayout page;       // below 16 bits, as the stages are
  int32_t stage_offset;  // of the stages, which follow the slabs
  int32_t stage_bytes, stages;
  int32_t stage_pitch;  // of a token's codes in a stage
  int32_t stage_scales,
      stage_key_scales;  // in a stage: int8, fp8 (step tokens, 2); int4 scales and zeros of the columns
  int32_t map_offset;    // of value_map's rows in the combine
  int32_t shared_bytes;
};

/// Registers per thread that a kernel may use; a test of the compiled kernels enforces it.
constexpr int register_budget(int row_tiles, int units, int column_warps) {
  if (row_tiles == 2) return units == 4 ? 168 : 255;
  return units == 4 ? 128 : column_warps == 1 ? 168 : 224;
}

/// For experiments; 0 leaves the choice to choose_tiling. `slabs` of a packed cache: stages.
struct TilingWish {
  int row_tiles = 0, row_groups = 0, warps = 0, slabs = 0, resident = 0, parts = 0;
};

/// Chooses for a step. False with the rule and the value in `error` where no kernel covers the shape.
bool choose_tiling(const CinchDecodeStep& step, const Multiprocessor& processor, const TilingWish& wish, Tiling& tiling,
                   char* error, uint64_t error_size);

/// Null, or which array a step lacks to run, in words; its sizes do without.
inline const char* missing_array(const CinchDecodeStep& step) {
  if (step.cache_format != CINCH_CACHE_16BIT && step.block_table == nullptr)
    return "a cache below 16 bits needs a block_table";
  if (step.cache_format == CINCH_CACHE_INT4 && step.open.data == nullptr) return "an int4 cache needs open pages";
  return nullptr;
}

// The combine's work, in pieces that thread blocks take in turn.

/// Of shared memory, what a thread of merge() hands on.
constexpr int kMergeBytes = 24;
constexpr int kMapBatch = 16;  // sequences of one mma of map()

/// Quads of columns that a thread block merges at once.
CINCH_HOST_DEVICE int merge_quads(const Tiling& t) {
  const int threads = 32 * t.warps * t.row_groups;
  return t.merge_groups == 1 ? 4 * threads : threads / t.merge_groups;
}
/// Of one sequence.
CINCH_HOST_DEVICE int merge_chunks(const CinchDecodeStep& step, const Tiling& t) {
  const int quads = step.n_heads * (t.value_columns / 4);
  return (quads + merge_quads(t) - 1) / merge_quads(t);
}
/// Where v_head_dim > 0.
CINCH_HOST_DEVICE int map_pieces(const CinchDecodeStep& step, const Tiling& t) {
  const int batches = (step.batch + kMapBatch - 1) / kMapBatch;
  return step.n_heads * batches * ((step.v_head_dim + t.value_rows - 1) / t.value_rows);
}

/// Scratch, in bytes from its begin; begins with the grid's barrier.
struct ScratchLayout {
  uint64_t partial_lse;  // (2 parts, H) float, base 2
  uint64_t partial_out;  // (2 parts, H, value columns) float
  uint64_t latent_out;   // (B, H, R) 16-bit, where v_head_dim > 0 only
  uint64_t bytes;
};
inline ScratchLayout scratch_layout(const CinchDecodeStep& step, int parts, int value_columns) {
  const auto up = [](uint64_t bytes) { return (bytes + 255) / 256 * 256; };
  const uint64_t places = 2 * static_cast<uint64_t>(parts) * static_cast<uint64_t>(step.n_heads);
  ScratchLayout layout{};
  layout.partial_lse = 256;
  layout.partial_out = layout.partial_lse + up(places * sizeof(float));
  layout.latent_out = layout.partial_out + up(places * static_cast<uint64_t>(value_columns) * sizeof(float));
  layout.bytes = layout.latent_out;
  if (step.v_head_dim > 0) {
    layout.bytes += up(static_cast<uint64_t>(step.batch) * static_cast<uint64_t>(step.n_heads) *
                       static_cast<uint64_t>(value_columns) * 2);
  }
  return layout;
}

/// All that a kernel is given.
struct DecodeJob {
  CinchDecodeStep step;
  Tiling tiling;
  ScratchLayout scratch;
  int32_t phases;  // of one launch: kStream, kMerge, kMap
};
enum { kStream = 1, kMerge = 2, kMap = 4, kAllPhases = 7 };

}  // namespace cinch::decode
