#include "attention/kernels/warp/warp_emulator.h"

#include <gtest/gtest.h>

#include <array>
#include <stdexcept>
#include <vector>

#include "attention/kernels/warp/warp.h"
#include "tests/attention/emulation.h"

namespace cinch::warp {
namespace {

uint16_t bits(int value) { return Bf16::from_float(static_cast<float>(value)); }

class WarpEmulator : public EmulationTest {};

/// A = 16 x 16, B = 16 x 8 of small whole numbers in shared memory, through ldmatrix and mma, against three loops.
TEST_F(WarpEmulator, MatricesMultiplyAsTheFragmentTablesSay) {
  std::array<std::array<float, 8>, 16> found{};
  const auto left = [](int r, int k) { return (3 * r + 5 * k) % 7 - 3; };
  const auto right = [](int k, int n) { return (2 * k + 7 * n) % 5 - 2; };
  emulator::run({32, 1024, false}, [&](int lane) {
    for (int i = lane; i < 256; i += 32)
      emulator::shared<uint16_t>(static_cast<uint32_t>(2 * i)) = bits(left(i / 16, i % 16));
    // B stored by columns (n, k) at 512, and by rows (k, n) at 768.
    for (int i = lane; i < 128; i += 32) {
      emulator::shared<uint16_t>(static_cast<uint32_t>(512 + 2 * i)) = bits(right(i % 16, i / 16));
      emulator::shared<uint16_t>(static_cast<uint32_t>(768 + 2 * i)) = bits(right(i / 8, i % 8));
    }
    sync_block();
    uint32_t a[4], b[4], t[4];
    load_matrices(a, static_cast<Shared>(lane % 16 * 32 + lane / 16 * 16));
    load_matrices(b, static_cast<Shared>(512 + lane % 8 * 32 + lane / 8 % 2 * 16));
    load_matrices_transposed(t, static_cast<Shared>(768 + lane % 16 * 16));
    EXPECT_EQ(b[0], t[0]);
    EXPECT_EQ(b[1], t[1]);
    float d[4] = {1, 1, 1, 1};
    multiply_add(Bf16(), d, a, b[0], b[1]);
    for (int i = 0; i < 4; ++i)
      found[static_cast<size_t>(lane / 4 + i / 2 * 8)][static_cast<size_t>(2 * (lane % 4) + i % 2)] = d[i];
  });
  for (int r = 0; r < 16; ++r) {
    for (int n = 0; n < 8; ++n) {
      float expected = 1;
      for (int k = 0; k < 16; ++k) expected += static_cast<float>(left(r, k) * right(k, n));
      EXPECT_EQ(found[static_cast<size_t>(r)][static_cast<size_t>(n)], expected) << r << ", " << n;
    }
  }
}

TEST_F(WarpEmulator, CopiesArriveWhenWaitedForAndNotBefore) {
  alignas(16) const std::array<uint32_t, 4> source{1, 2, 3, 4};
  emulator::run({32, 1024, false}, [&](int lane) {
    const auto at = static_cast<Shared>(32 * lane);
    copy_async(at, source.data(), true);
    copy_commit();
    copy_async(at + 16, source.data(), false);
    copy_commit();
    EXPECT_EQ(shared_words4(at).x, 0xffffffffu);
    copy_wait(1);
    EXPECT_EQ(shared_words4(at).w, 4u);
    EXPECT_EQ(shared_words4(at + 16).x, 0xffffffffu);
    copy_wait(0);
    EXPECT_EQ(shared_words4(at + 16).x, 0u);
  });
}

TEST_F(WarpEmulator, AMissingBarrierShows) {
  for (const bool last_first : {false, true}) {
    for (const bool barrier : {false, true}) {
      bool seen = true;
      emulator::run({64, 64, last_first}, [&](int thread) {
        // The first warp to run reads what the other has not written yet.
        const int writer = last_first ? 0 : 32, reader = last_first ? 32 : 0;
        if (thread == writer) shared_store(0, 1.5f);
        if (barrier) sync_block();
        if (thread == reader) seen = shared_float(0) == 1.5f;
      });
      EXPECT_EQ(seen, barrier);
    }
  }
}

TEST_F(WarpEmulator, NamedBarriersJoinTheirThreadsOnly) {
  std::vector<int> order;
  emulator::run({96, 64, false}, [&](int thread) {
    if (thread < 64) sync_some(3, 64);
    if (thread % 32 == 0) order.push_back(thread);
  });
  EXPECT_EQ(order, (std::vector<int>{32, 64, 0}));
}

TEST_F(WarpEmulator, NamesFaults) {
  const auto run = [](int threads, const std::function<void(int)>& body) { emulator::run({threads, 64, false}, body); };
  EXPECT_THROW(run(32, [](int) { shared_float(64); }), std::runtime_error);  // beyond the end
  EXPECT_THROW(run(32, [](int) { shared_words4(8); }), std::runtime_error);  // not aligned
  EXPECT_THROW(run(32,
                   [](int lane) {
                     if (lane != 5) sync_block();
                   }),
               std::runtime_error);
  EXPECT_THROW(run(32,
                   [](int lane) {
                     if (lane > 3) shuffle_xor(1, 1);
                   }),
               std::runtime_error);
  EXPECT_THROW(run(32, [](int lane) { lane == 7 ? void(any(true)) : void(shuffle_xor(1, 1)); }), std::runtime_error);
  EXPECT_THROW(run(64, [](int thread) { sync_some(1, thread < 32 ? 64 : 32); }), std::runtime_error);
  EXPECT_THROW(run(31, [](int) {}), std::runtime_error);
  EXPECT_NO_THROW(run(32, [](int) { sync_block(); }));  // and it works again afterwards
}

TEST_F(WarpEmulator, HalfTypesRoundToNearestEven) {
  EXPECT_EQ(Bf16::from_float(1.0f), 0x3f80);
  EXPECT_EQ(Bf16::from_float(float_of_bits(0x3f808000)), 0x3f80);  // half way, to even
  EXPECT_EQ(Bf16::from_float(float_of_bits(0x3f818000)), 0x3f82);
  EXPECT_EQ(Fp16::from_float(65504.0f), 0x7bff);
  EXPECT_EQ(Fp16::from_float(65520.0f), 0x7c00);
  EXPECT_EQ(Fp16::from_float(0x1p-24f), 0x0001);
  EXPECT_EQ(Fp16::from_float(0x1p-25f), 0x0000);
  EXPECT_EQ(Fp16::from_float(-0x1.8p-24f), 0x8002);
  for (uint32_t value = 0; value < 0x10000; ++value) {
    const auto half = static_cast<uint16_t>(value);
    if ((half & 0x7fff) <= 0x7c00) {
      EXPECT_EQ(Fp16::from_float(Fp16::to_float(half)), half);
    }
    if ((half & 0x7fff) <= 0x7f80) {
      EXPECT_EQ(Bf16::from_float(Bf16::to_float(half)), half);
    }
  }
}

}  // namespace
}  // namespace cinch::warp
