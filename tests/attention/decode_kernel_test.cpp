// The decode kernels' own code, in the warp emulator, against the double-precision reference.
#include "attention/kernels/decode/emulated_decode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "tests/attention/decode_grid.h"
#include "tests/attention/emulation.h"

namespace cinch::decode {
namespace {

class DecodeKernel : public EmulationTest {};

DecodeArrays run(const DecodeCase& c, const Multiprocessor& processor = kHopper, const TilingWish& wish = {},
                 bool last_warp_first = false) {
  DecodeArrays arrays = CaseBuilder(c, 7).build();
  arrays.point();
  run_emulated(arrays.step, processor, wish, last_warp_first);
  return arrays;
}

void expect_good(const DecodeCase& c, const Multiprocessor& processor = kHopper, const TilingWish& wish = {}) {
  SCOPED_TRACE(name_of(c));
  static bool last_warp_first = false;
  last_warp_first = !last_warp_first;
  try {
    const DecodeArrays arrays = run(c, processor, wish, last_warp_first);
    const DecodeErrors errors = compare(arrays, reference_decode(arrays.step));
    EXPECT_TRUE(errors.good()) << errors.text();
  } catch (const std::runtime_error& fault) {
    FAIL() << fault.what();
  }
}
void expect_good(std::vector<DecodeCase> cases, const Multiprocessor& processor = kHopper) {
  vary(cases);
  for (const DecodeCase& c : cases) expect_good(c, processor);
}

const std::vector<int32_t> kLengths = {1, 0, 70, 130, 64};

TEST_F(DecodeKernel, EdgesOfTheBucketsOfValueColumns) {
  std::vector<DecodeCase> cases;
  for (const int bucket : {64, 128, 256, 512}) {
    for (const int rank : {bucket - 8, bucket, bucket + 8}) {
      cases.push_back(latent_case(rank, 24, 16, kLengths));
      cases.push_back(latent_case(rank, 64, 33, {0, 65}));
    }
  }
  expect_good(cases);
}

TEST_F(DecodeKernel, OddRanksAndHeads) {
  std::vector<DecodeCase> cases;
  for (const int rank : {16, 24, 40, 104, 144, 200}) {
    for (const int n_heads : {1, 9, 17, 28}) cases.push_back(latent_case(rank, 8 + rank % 3 * 16, n_heads, kLengths));
  }
  for (const int rank : {96, 192, 320, 384, 448}) cases.push_back(latent_case(rank, 32, 24, {3, 129}));
  for (const int n_heads : {63, 64, 65, 128}) cases.push_back(latent_case(72, 16, n_heads, {0, 100, 9}));
  expect_good(cases);
}

TEST_F(DecodeKernel, RanksBeyondOneBlocksColumns) {
  expect_good({latent_case(528, 64, 8, {90}), latent_case(1024, 128, 20, {40, 70})});
  expect_good({latent_case(1024, 64, 12, {100}), latent_case(640, 128, 40, {66})}, kAmpere);
  expect_good({latent_case(1024, 128, 12, {100}), latent_case(512, 64, 20, {70, 1})}, kBlackwell);
}

TEST_F(DecodeKernel, GroupSizes) {
  std::vector<DecodeCase> cases;
  for (const int group : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 28, 32, 40})
    cases.push_back(grouped_case(group % 2 == 0 ? 64 : 40, group, 2, {70, 0, 129}));
  expect_good(cases);
}

TEST_F(DecodeKernel, HeadSizes) {
  std::vector<DecodeCase> cases;
  for (int head_dim = 32; head_dim <= 256; head_dim += head_dim < 144 ? 8 : 56) {
    cases.push_back(grouped_case(head_dim, 4, 2, {70, 0, 129}));
    cases.push_back(grouped_case(head_dim, 20, 1, {65}));
  }
  cases.push_back(grouped_case(256, 33, 1, {130}));
  expect_good(cases);
}

TEST_F(DecodeKernel, Features) {
  for (const int rank : {48, 72, 136}) expect_good(latent_features(rank, 24, 12, {90, 0, 3, 150}));
  expect_good(latent_features(264, 16, 20, {90, 0, 3}));
  expect_good(latent_features(72, 40, 9, {200}), kAmpere);
  std::vector<DecodeCase> grouped(3, grouped_case(72, 5, 2, {90, 0, 3, 300}));
  grouped[0].window = 70;
  grouped[1].softcap = 2;
  grouped[1].spread = 6;
  grouped[2].window = 1;
  expect_good(grouped);
}

TEST_F(DecodeKernel, ManyPartsAndManySequences) {
  std::vector<int32_t> many(70);
  for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<int32_t>(i * 37 % 90);
  expect_good(grouped_case(32, 3, 1, many));
  DecodeCase c = latent_case(32, 8, 4, many);
  c.v_head_dim = 24;
  expect_good(c);
  TilingWish wish;
  wish.parts = 40;
  c = latent_case(32, 8, 4, {2500});  // more than 32 partial results
  expect_good(c, kHopper, wish);
  c.v_head_dim = 24;
  expect_good(c, kHopper, wish);
}

/// Rings that are just large enough, and such that their slots shift from step to step.
TEST_F(DecodeKernel, RingsOfAnySize) {
  for (const int slabs : {4, 5, 6, 7, 11, 16}) {
    TilingWish wish;
    wish.slabs = slabs;
    expect_good(latent_case(72, 24, 12, {300, 20, 200}), kHopper, wish);
    expect_good(latent_case(264, 24, 20, {150, 20}), kHopper, wish);
  }
  for (const int warps : {1, 2}) {
    TilingWish wish;
    wish.warps = warps;
    for (const int rank : {48, 136, 264}) expect_good(latent_case(rank, 24, 20, {150, 20}), kHopper, wish);
  }
}

TEST_F(DecodeKernel, WaysToLayOutRows) {
  for (const int row_tiles : {1, 2}) {
    for (const int row_groups : {1, 2}) {
      TilingWish wish;
      wish.row_tiles = row_tiles;
      wish.row_groups = row_groups;
      for (const int rank : {64, 128, 256, 512}) expect_good(latent_case(rank, 16, 40, {70, 5}), kHopper, wish);
    }
  }
}

TEST_F(DecodeKernel, SplitsEqualTheWhole) {
  DecodeCase c = latent_case(136, 24, 12, {700, 90});
  TilingWish wish;
  wish.parts = 1;
  const DecodeArrays whole = run(c, kHopper, wish);
  for (const int parts : {2, 3, 5, 13}) {
    wish.parts = parts;
    const DecodeArrays split = run(c, kHopper, wish);
    const DecodeArrays again = run(c, kHopper, wish, /*last_warp_first=*/true);
    EXPECT_EQ(split.out, again.out) << "order of warps changes bits";
    double difference = 0, norm = 0;
    for (size_t i = 0; i < whole.out.size(); ++i) {
      if (whole.out[i] == 0x7fff) continue;
      const double a = Bf16::to_float(whole.out[i]), b = Bf16::to_float(split.out[i]);
      difference += (a - b) * (a - b);
      norm += a * a;
    }
    EXPECT_LT(std::sqrt(difference / norm), 2e-3) << parts;
    for (size_t i = 0; i < whole.lse.size(); ++i) EXPECT_NEAR(whole.lse[i], split.lse[i], 2e-5);
  }
}

/// The value map applied by the kernel, and to the reference's latent result by hand.
TEST_F(DecodeKernel, ValueMapIsThatOfTheLatentResult) {
  DecodeCase c = latent_case(72, 24, 6, {200, 0, 33});
  c.v_head_dim = 40;
  DecodeArrays arrays = run(c);
  const ReferenceResult mapped = reference_decode(arrays.step);
  CinchDecodeStep latent = arrays.step;
  latent.v_head_dim = 0;
  const ReferenceResult plain = reference_decode(latent);
  double difference = 0, norm = 0;
  for (int b = 0; b < 3; ++b) {
    for (int h = 0; h < 6; ++h) {
      for (int v = 0; v < 40; ++v) {
        double expected = 0;
        for (int r = 0; r < 72; ++r) {
          const auto at = static_cast<size_t>(h * latent.value_map_head_stride + v * latent.value_map_row_stride + r);
          expected += static_cast<double>(Bf16::to_float(arrays.value_map[at])) *
                      plain.out[static_cast<size_t>((b * 6 + h) * 72 + r)];
        }
        EXPECT_NEAR(mapped.out[static_cast<size_t>((b * 6 + h) * 40 + v)], expected, 1e-12);
        const auto at = static_cast<size_t>(b * latent.out_batch_stride + h * latent.out_head_stride + v);
        difference += std::pow(static_cast<double>(Bf16::to_float(arrays.out[at])) - expected, 2);
        norm += expected * expected;
      }
    }
  }
  EXPECT_LT(std::sqrt(difference / norm), 5e-3);
}

}  // namespace
}  // namespace cinch::decode
