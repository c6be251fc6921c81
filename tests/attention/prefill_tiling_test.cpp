// Every pair of widths has a tiling on every kind of multiprocessor, within its shared memory.
#include "attention/kernels/prefill/prefill_tiling.h"

#include <gtest/gtest.h>

#include <array>

#include "tests/attention/emulation.h"
#include "tests/attention/prefill_grid.h"

namespace cinch::prefill {
namespace {

constexpr Multiprocessor kProcessors[] = {warp::kAmpere, warp::kHopper, warp::kBlackwell};

TEST(PrefillTiling, EveryWidthFits) {
  std::array<char, 256> error{};
  CinchPrefill work{};
  work.n_heads = work.n_kv_heads = 1;
  work.batch = 1;
  work.queries = work.keys = 1000;
  for (const Multiprocessor& processor : kProcessors) {
    for (work.head_dim = 8; work.head_dim <= kMaxWidth; work.head_dim += 8) {
      for (work.v_head_dim = 8; work.v_head_dim <= kMaxWidth; work.v_head_dim += 8) {
        SCOPED_TRACE(testing::Message() << work.head_dim << " " << work.v_head_dim << " " << processor.shared_bytes);
        ForwardTiling forward{};
        ASSERT_TRUE(choose_forward_tiling(work, processor, forward, error.data(), error.size())) << error.data();
        EXPECT_LE(forward.shared_bytes, processor.shared_bytes_per_block);
        EXPECT_GE(forward.slots, 2);
        EXPECT_GE(16 * forward.units, work.v_head_dim);
        EXPECT_GE(forward.rows * forward.row_blocks, work.queries);
        EXPECT_EQ(forward.ring_offset % 16, 0);
        GradientPasses passes{};
        ASSERT_TRUE(choose_gradient_passes(work, processor, passes, error.data(), error.size())) << error.data();
        for (int i = 0; i < passes.count; ++i) {
          const GradientTiling& t = passes.tilings[i];
          EXPECT_LE(t.shared_bytes, processor.shared_bytes_per_block);
          EXPECT_GE(t.slots, 1);
          EXPECT_EQ(t.streamed_rows % (kTile * streamed_tiles(t.pass, t.units)), 0);
          const int width = t.pass == kOfValues          ? work.v_head_dim
                            : t.pass == kOfKeysAndValues ? std::max(work.head_dim, work.v_head_dim)
                                                         : work.head_dim;
          EXPECT_GE(16 * t.units, width);
          EXPECT_GE(t.own_rows * t.own_blocks, 1000);
          EXPECT_EQ((t.own_states_offset | t.ring_offset | t.slot_bytes | t.slot_states_offset) % 16, 0);
        }
      }
    }
  }
}

/// On a multiprocessor of sm_90, heads of 128 and less leave room for two thread blocks.
TEST(PrefillTiling, TwoThreadBlocksShareAMultiprocessor) {
  std::array<char, 256> error{};
  CinchPrefill work = PrefillBuilder(sized(4, 2, 300, 300, 128, 128), 1).build().work;
  ForwardTiling forward{};
  ASSERT_TRUE(choose_forward_tiling(work, warp::kHopper, forward, error.data(), error.size()));
  EXPECT_LE(2 * (forward.shared_bytes + 1024), warp::kHopper.shared_bytes);
  EXPECT_EQ(forward.rows, 128);
  GradientPasses passes{};
  ASSERT_TRUE(choose_gradient_passes(work, warp::kHopper, passes, error.data(), error.size()));
  ASSERT_EQ(passes.count, 2);
  for (int i = 0; i < 2; ++i) {
    EXPECT_LE(2 * (passes.tilings[i].shared_bytes + 1024), warp::kHopper.shared_bytes);
    EXPECT_EQ(passes.tilings[i].slots, 2);
  }
}

TEST(PrefillTiling, DividersDivide) {
  for (const int divisor : {1, 2, 3, 5, 7, 8, 12, 28, 32, 127, 4095, 4096, 4097, 65535, 65536}) {
    const Divider divider = divider_of(divisor);
    for (const int number : {0, 1, divisor - 1, divisor, divisor + 1, 12345, 1 << 30, INT32_MAX / divisor * divisor - 1,
                             INT32_MAX / divisor * divisor, INT32_MAX})
      EXPECT_EQ(divider.quotient(number), number / divisor) << number << " / " << divisor;
  }
}

}  // namespace
}  // namespace cinch::prefill
