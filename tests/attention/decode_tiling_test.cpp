#include "attention/kernels/decode/tiling.h"

#include <gtest/gtest.h>

#include <array>
#include <string>

#include "attention/kernels/decode/slab_loader.h"
#include "tests/attention/emulation.h"

namespace cinch::decode {
namespace {

std::string refusal(const CinchDecodeStep& step, const Multiprocessor& processor = kHopper) {
  Tiling tiling{};
  std::array<char, 256> error{};
  return choose_tiling(step, processor, {}, tiling, error.data(), error.size()) ? "" : error.data();
}

/// What every tiling must keep to; returns it.
Tiling checked_tiling(const CinchDecodeStep& step, const Multiprocessor& processor) {
  Tiling t{};
  std::array<char, 256> error{};
  EXPECT_TRUE(choose_tiling(step, processor, {}, t, error.data(), error.size())) << error.data();
  const int threads = 32 * t.warps * t.row_groups;
  EXPECT_LE(threads, kMaxThreads);
  EXPECT_LE(t.shared_bytes, processor.shared_bytes_per_block);
  EXPECT_LE((t.shared_bytes + 1024) * t.resident, processor.shared_bytes);
  EXPECT_LE(register_budget(t.row_tiles, t.units, t.column_warps) * threads * t.resident, 65536);
  EXPECT_EQ(t.warps % t.column_warps, 0);
  EXPECT_GE(t.slabs, t.warps);
  EXPECT_LE(t.slabs - t.warps, kMaxPending);
  EXPECT_EQ(kBlockSlabs % t.warps, 0);
  EXPECT_LE(t.warp_units, t.units);
  EXPECT_GE(t.warp_units * t.column_warps, t.block_units);
  EXPECT_GE(t.block_units * t.column_blocks * kUnit, t.value_columns);
  EXPECT_GE(16 * t.row_tiles * t.row_groups * t.row_blocks, t.rows);
  EXPECT_GE(t.parts, 1);
  EXPECT_GE(t.shared_bytes, kMergeBytes * threads);
  for (const int pitch : {t.query_pitch, t.key_pitch, t.value_pitch}) EXPECT_EQ(pitch % 32, 16);
  if (step.cache_format != CINCH_CACHE_16BIT) {
    EXPECT_GE(t.stages, 1);
    EXPECT_LE(t.stages - 1, kMaxPending);
    EXPECT_EQ(t.slabs, t.warps);
    EXPECT_GE(t.stage_offset, t.ring_offset + t.slabs * t.slab_bytes);
    EXPECT_LE(t.stage_offset + t.stages * t.stage_bytes, t.shared_bytes);
    EXPECT_GE(t.stage_pitch, t.page.row_bytes);
    EXPECT_GE(t.stage_scales, t.warps * kSlab * t.stage_pitch);
    for (const int offset : {t.stage_offset, t.stage_bytes, t.stage_pitch, t.stage_scales, t.stage_key_scales})
      EXPECT_EQ(offset % 16, 0);
  }
  if (step.v_head_dim > 0) {
    EXPECT_GE(t.value_rows, 16);
    const int pitch = (t.value_columns + 15) / 16 * 32 + 16;
    EXPECT_LE(t.map_offset + (t.value_rows + 15) / 16 * 16 * pitch, t.shared_bytes);
  }
  return t;
}

/// The sizes of a step, without arrays.
CinchDecodeStep latent_step(int rank, int rope, int n_heads, int v_head_dim) {
  CinchDecodeStep step{};
  step.kind = CINCH_DECODE_LATENT;
  step.batch = 3;
  step.n_heads = n_heads;
  step.n_kv_heads = 1;
  step.kv_lora_rank = rank;
  step.qk_rope_head_dim = rope;
  step.v_head_dim = v_head_dim;
  step.scale = 1;
  return step;
}
CinchDecodeStep grouped_step(int head_dim, int n_heads, int n_kv_heads) {
  CinchDecodeStep step{};
  step.kind = CINCH_DECODE_GROUPED;
  step.batch = 3;
  step.n_heads = n_heads;
  step.n_kv_heads = n_kv_heads;
  step.head_dim = head_dim;
  step.scale = 1;
  return step;
}

TEST(DecodeTiling, FitsEveryShapeOnEveryArchitecture) {
  for (const Multiprocessor& processor : {kAmpere, kHopper, kBlackwell}) {
    for (int rank = 16; rank <= 1024; rank += 8) {
      for (const int rope : {8, 64, 128}) {
        for (const int n_heads : {1, 16, 17, 32, 40, 64, 128}) {
          CinchDecodeStep step = latent_step(rank, rope, n_heads, rank % 16 == 0 ? 128 : 0);
          for (const int format : {CINCH_CACHE_16BIT, CINCH_CACHE_INT8, CINCH_CACHE_FP8, CINCH_CACHE_INT4}) {
            step.cache_format = format;
            checked_tiling(step, processor);
          }
        }
      }
    }
    for (int head_dim = 32; head_dim <= 256; head_dim += 8) {
      for (const int group : {1, 9, 16, 28, 40}) checked_tiling(grouped_step(head_dim, group, 1), processor);
    }
  }
}

TEST(DecodeTiling, StreamsOnHopperWithRoomToSpare) {
  for (const int rank : {64, 96, 128, 192, 256, 320, 384, 448, 512}) {
    for (const int n_heads : {16, 32, 64}) {
      const Tiling t = checked_tiling(latent_step(rank, 64, n_heads, 0), kHopper);
      EXPECT_EQ(t.row_blocks * t.column_blocks, 1) << "the cache is read once";
      // Little's law: some 25 KiB on their way keep an H200's multiprocessor busy.
      EXPECT_GE((t.slabs - t.warps) * t.slab_bytes * t.resident, 25 << 10) << rank << " " << n_heads;
    }
  }
}

/// Shared memory has 32 banks of 4 bytes: what half a warp (8 bytes each) or a warp (4 bytes) reads of rows of codes.
TEST(DecodeTiling, ReadsOfCodesMeetDifferentBanks) {
  for (int rank = 16; rank <= 512; rank += 8) {
    for (const int n_heads : {16, 64}) {
      for (const int format : {CINCH_CACHE_INT8, CINCH_CACHE_INT4}) {
        CinchDecodeStep step = latent_step(rank, 64, n_heads, 0);
        step.cache_format = format;
        const Tiling t = checked_tiling(step, kHopper);
        const int bytes = format == CINCH_CACHE_INT4 ? 4 : 8, row_threads = 2 * t.warps * t.row_groups;
        std::array<int, 32> uses{};
        for (int thread = 0; thread < 128 / bytes; ++thread) {
          const int at = thread / row_threads * t.stage_pitch + thread % row_threads * bytes;
          for (int word = 0; word < bytes; word += 4) ++uses[static_cast<size_t>((at + word) / 4 % 32)];
        }
        for (const int count : uses) EXPECT_EQ(count, 1) << rank << " " << n_heads << " " << format;
      }
    }
  }
}

TEST(DecodeTiling, RefusalsNameRuleAndValue) {
  CinchDecodeStep step = latent_step(64, 32, 8, 0);
  EXPECT_EQ(refusal(step), "");
  step.kv_lora_rank = 68;
  EXPECT_EQ(refusal(step), "kv_lora_rank must be a multiple of 8 in 16..1024, found 68");
  step = latent_step(64, 32, 8, 0);
  step.qk_rope_head_dim = 4;
  EXPECT_EQ(refusal(step), "rotary columns must be a multiple of 8 in 8..1024, found 4");
  step = latent_step(64, 32, 8, 0);
  step.n_kv_heads = 3;
  EXPECT_EQ(refusal(step), "n_kv_heads must divide n_heads, found 3");
  step = latent_step(64, 32, 8, 0);
  step.keys.token_stride = 88;
  EXPECT_EQ(refusal(step), "a latent's token_stride must hold its row, padded to a multiple of 8, found 88");
  step = grouped_step(64, 4, 2);
  step.head_dim = 264;
  EXPECT_EQ(refusal(step), "head_dim must be a multiple of 8 in 32..256, found 264");
  step = grouped_step(64, 4, 2);
  step.v_head_dim = 64;
  EXPECT_EQ(refusal(step), "v_head_dim needs latent attention, found 0");
  step = latent_step(1024, 64, 8, 0);
  EXPECT_EQ(refusal(step, {3, 65536, 49152}), "rows of 1088 columns do not fit into 49152 bytes of shared memory");
}

}  // namespace
}  // namespace cinch::decode
