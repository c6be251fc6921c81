// The sm_90 latent decode on the emulator: the code that the GPU runs, block by block, against fp64.
#include "attention/kernels/cuda/latent_sm90_block.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "attention/kernels/cuda/latent_sm90.h"
#include "attention/kernels/decode/combine.h"
#include "attention/kernels/decode/plan_block.h"
#include "tests/attention/decode_grid.h"
#include "tests/attention/sm90_emulator.h"

namespace cinch::decode {
namespace {

using sm90::EmulatedBlock;
using sm90::Emulator;

/// Plans and runs `arrays.step` with `parts` parts; empty, or what the emulator found. pace: seed of the order in which
/// things happen; odd: wgmma reads late.
class EmulatedRun {
 public:
  EmulatedRun(DecodeArrays& arrays, int parts, uint64_t pace, int tile_tokens)
      : pace_(pace), tile_tokens_(tile_tokens) {
    std::array<char, 256> error{};
    const Multiprocessor processor{parts * sm90::divided_up(arrays.step.n_heads, kSm90Heads), 233472, 232448};
    if (!choose_sm90_tiling(arrays.step, processor, job_.tiling, error.data(), error.size())) failure_ = error.data();
    if (const char* missing = sm90_missing(arrays.step, 9, 0)) failure_ = missing;
    EXPECT_EQ(job_.tiling.parts, parts);
    job_.step = arrays.step;
    plan_.resize(SplitPlan::bytes(parts, job_.step.batch) / sizeof(int32_t));
    job_.scratch = scratch_layout(job_.step, parts, job_.tiling.value_columns);
    scratch_.assign(job_.scratch.bytes / sizeof(uint64_t), ~uint64_t{0});
    job_.step.plan = plan_.data();
    job_.step.scratch = scratch_.data();
    const SplitPlan plan = SplitPlan::at(plan_.data(), parts, job_.step.batch);
    emulator::run({kPlanThreads, kPlanSharedBytes, false},
                  [&](int thread) { make_plan(plan, job_.step.lengths, job_.step.window, thread); });
  }

  std::string run() {
    if (!failure_.empty()) return failure_;
    if (job_.step.type == CINCH_DECODE_BF16) {
      run<Bf16>();
    } else {
      run<Fp16>();
    }
    return failure_;
  }

 private:
  template <class T>
  void run() {
    const int rank = job_.step.kv_lora_rank;
    sm90::with_variant(rank, rank + job_.step.qk_rope_head_dim, tile_tokens_,
                       [&](auto variant) { stream<T>(variant); });
    if (failure_.empty()) combine<T>();
  }

  /// Of two thread blocks, so that each has several pieces of work.
  template <class T>
  void combine() {
    const Tiling& t = job_.tiling;
    const emulator::Block threads{32 * t.warps * t.row_groups, static_cast<size_t>(t.shared_bytes), pace_ % 2 != 0};
    for (const int block : {0, 1}) {
      emulator::run(threads, [&](int thread) {
        Combine<T> work(job_, block, 2, thread);
        work.prefetch_share();
        work.merge();
      });
    }
    for (const int block : {0, 1}) {
      if (job_.step.v_head_dim == 0) break;
      emulator::run(threads, [&](int thread) {
        const Combine<T> work(job_, block, 2, thread);
        work.prefetch_map();
        work.map();
      });
    }
  }

  template <class T, class V>
  void stream(V) {
    const CinchDecodeStep& s = job_.step;
    const int64_t width = s.kv_lora_rank + s.qk_rope_head_dim;
    const bool paged = s.block_table != nullptr;
    const Emulator::TensorMap cache{
        s.keys.data,
        {width, paged ? int64_t{CINCH_DECODE_PAGE} : s.keys.page_stride / s.keys.token_stride,
         paged ? int64_t{1} << 31 : s.batch},
        {2, s.keys.token_stride * 2, s.keys.page_stride * 2},
        V::kTokens};
    const Emulator::TensorMap queries{
        s.q, {width, s.n_heads, s.batch}, {2, s.q_head_stride * 2, s.q_batch_stride * 2}, sm90::kOperandRows};
    const sm90::SharedLayout layout =
        sm90::shared_layout(static_cast<int>(width), V::kColumns, V::kSplitColumns, V::kTokens);
    for (int y = 0; y < sm90::divided_up(s.n_heads, kSm90Heads); ++y) {
      for (int x = 0; x < job_.tiling.parts && failure_.empty(); ++x) {
        EmulatedBlock block({x, y}, sm90::kThreads, layout.total, pace_);
        failure_ = block.run([&](Emulator& machine) {
          sm90::LatentDecodeBlock<Emulator, T, V::kColumns, V::kSplitColumns, V::kTokens> work(machine, job_, &cache,
                                                                                               &queries);
          work.run();
        });
      }
    }
  }

  const uint64_t pace_;
  const int tile_tokens_;
  DecodeJob job_{};
  std::vector<int32_t> plan_;
  std::vector<uint64_t> scratch_;
  std::string failure_;
};

struct Shape {
  int rank, rope, heads;
  std::vector<int32_t> lengths;
  int type = CINCH_DECODE_BF16;
};
DecodeCase case_of(const Shape& shape) {
  DecodeCase c;
  c.rank = shape.rank;
  c.rope = shape.rope;
  c.n_heads = shape.heads;
  c.lengths = shape.lengths;
  c.type = shape.type;
  return c;
}

void expect_right(const DecodeCase& c, int parts, uint64_t pace, int tile_tokens = 0) {
  SCOPED_TRACE(name_of(c) + ", parts " + std::to_string(parts) + ", pace " + std::to_string(pace));
  DecodeArrays arrays = CaseBuilder(c, static_cast<uint32_t>(pace)).build();
  ASSERT_EQ(EmulatedRun(arrays, parts, pace, tile_tokens).run(), "");
  const DecodeErrors errors = compare(arrays, reference_decode(arrays.step));
  EXPECT_TRUE(errors.good()) << errors.text();
}

constexpr int kHalf = CINCH_DECODE_FP16;

TEST(LatentDecodeSm90, SaysWhatItDoesNotCover) {
  DecodeArrays arrays = CaseBuilder(case_of({64, 16, 3, {150}}), 1).build();
  EXPECT_EQ(sm90_missing(arrays.step, 9, 0), nullptr);
  EXPECT_STREQ(sm90_missing(arrays.step, 8, 0), "needs sm_90a");
  for (const int format : kPackedFormats) {
    arrays.step.cache_format = format;
    EXPECT_STREQ(sm90_missing(arrays.step, 9, 0), "caches of 16 bits only");
  }
}

TEST(LatentDecodeSm90, AlternateTiles) {
  expect_right(case_of({64, 16, 3, {150}}), 1, 0);
  expect_right(case_of({72, 8, 9, {64, 1, 0, 200}}), 2, 1);
  expect_right(case_of({16, 8, 64, {130, 64}, kHalf}), 3, 2);
  expect_right(case_of({200, 32, 16, {333}}), 2, 3);
  expect_right(case_of({256, 64, 5, {257, 65}, kHalf}), 2, 5);
}

TEST(LatentDecodeSm90, ColumnsSplit) {
  expect_right(case_of({264, 8, 9, {150}}), 1, 0);
  expect_right(case_of({320, 64, 16, {64, 1, 0, 200}}), 2, 1);
  expect_right(case_of({448, 64, 3, {130, 64}, kHalf}), 3, 2);
  expect_right(case_of({512, 64, 64, {333}}), 2, 3);
  expect_right(case_of({512, 128, 7, {190, 33}}), 2, 5);
  expect_right(case_of({320, 64, 7, {190, 33}}), 2, 6, 32);
  expect_right(case_of({512, 64, 7, {190, 33}}), 2, 7, 32);
}

TEST(LatentDecodeSm90, WindowSoftcapDenseAndValueMap) {
  for (const int rank : {96, 392, 512}) {
    DecodeCase c = case_of({rank, 128, 12, {300, 20, 90, 0}});
    c.window = 70;
    c.softcap = 4;
    expect_right(c, 2, 7);
    c.window = 0;
    c.softcap = 0;
    c.paged = false;
    expect_right(c, 2, 8);
    c.v_head_dim = 40;
    c.value_bias = true;
    expect_right(c, 2, 9);
  }
}

TEST(LatentDecodeSm90, PeakedScores) {
  for (const int rank : {64, 320}) {
    DecodeCase c = case_of({rank, 16, 8, {400}});
    c.spread = 30;
    expect_right(c, 2, 3);
  }
}

TEST(LatentDecodeSm90, ManyPartsOfASequence) {
  expect_right(case_of({136, 16, 3, {700}}), 11, 2);
  expect_right(case_of({64, 8, 5, {2300, 100}, kHalf}), 36, 4);
  expect_right(case_of({264, 8, 2, {2300}}), 36, 3);
}

TEST(LatentDecodeSm90, TwoBlocksOfHeads) {
  expect_right(case_of({64, 16, 100, {150, 70}}), 2, 1);
  expect_right(case_of({320, 16, 128, {100}, kHalf}), 1, 2);
}

/// Rings that go round, and many paces of the warps.
TEST(LatentDecodeSm90, ManyOrders) {
  for (uint64_t pace = 10; pace < 20; ++pace) {
    expect_right(case_of({64, 8, 2, {900, 3}}), 1, pace);
    expect_right(case_of({264, 8, 2, {700, 3, 100}, kHalf}), 2, pace);
  }
}

TEST(LatentDecodeSm90, ResultsDoNotDependOnTheOrder) {
  for (const int rank : {64, 320}) {
    std::vector<uint16_t> outs[2];
    for (const uint64_t pace : {uint64_t{3}, uint64_t{4}}) {
      DecodeArrays arrays = CaseBuilder(case_of({rank, 16, 4, {200, 65}}), 1).build();
      ASSERT_EQ(EmulatedRun(arrays, 2, pace, 0).run(), "");
      outs[pace - 3] = arrays.out;
    }
    EXPECT_EQ(outs[0], outs[1]);
  }
}

/// Where tile_offset says an element is, the (independently written) swizzle of TMA puts it.
TEST(LatentDecodeSm90, TilesLieAsTmaWritesThem) {
  std::vector<uint16_t> numbers(64 * 128);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<uint16_t>(i + 1);
  for (const int rows : {32, 64}) {
    const Emulator::TensorMap map{numbers.data(), {128, 64, 1}, {2, 256, 0}, rows};
    EmulatedBlock block({0, 0}, 32, 32768, 1);
    int wrong = 0;
    const std::string failure = block.run([&](Emulator& machine) {
      const uint32_t base = machine.shared_base(), barrier = base + 16384;
      if (machine.thread() != 0) return;
      machine.barrier_init(barrier, 1);
      machine.barrier_expect(barrier, static_cast<uint32_t>(rows * 256));
      for (int b = 0; b < 2; ++b) {
        machine.load_box(base + static_cast<uint32_t>(b * rows * 128), &map, barrier, 64 * b, 64 - rows, 0);
      }
      machine.barrier_wait(barrier, 0);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < 128; ++c) {
          const uint32_t offset = sm90::tile_offset(rows, r, c);
          const Emulator::Chunk chunk = machine.load_shared(base + offset / 16 * 16);
          uint16_t seen;
          std::memcpy(&seen, reinterpret_cast<const char*>(&chunk) + offset % 16, 2);
          wrong += seen == numbers[static_cast<size_t>((64 - rows + r) * 128 + c)] ? 0 : 1;
        }
      }
    });
    EXPECT_EQ(failure, "");
    EXPECT_EQ(wrong, 0);
  }
}

TEST(LatentDecodeSm90, EveryShapeFits) {
  for (int rank = 16; rank <= 512; rank += 8) {
    for (int rope = 8; rope <= 128; rope += 8) {
      const auto expect_fit = [&](auto variant) {
        using V = decltype(variant);
        const sm90::SharedLayout layout = sm90::shared_layout(rank + rope, V::kColumns, V::kSplitColumns, V::kTokens);
        EXPECT_GE(layout.stages, 2) << rank << " + " << rope;
        EXPECT_LE(layout.total, sm90::kSharedLimit) << rank << " + " << rope;
        EXPECT_GE(V::kColumns * (V::kSplitColumns ? 2 : 1), rank);
        for (const uint32_t offset : {layout.block, layout.stage, layout.q})
          EXPECT_EQ(offset % sm90::kSwizzleAtomBytes, 0u);
      };
      for (const int tokens : {0, 32}) sm90::with_variant(rank, rank + rope, tokens, expect_fit);
    }
  }
}

}  // namespace
}  // namespace cinch::decode
