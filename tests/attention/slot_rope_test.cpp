#include "attention/slot_rope.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace cinch {
namespace {

TEST(SlotRope, TurnsNeighbouringPairs) {
  const std::vector<double> frequencies = {0.5, 0.0, 0.5, 2.0};
  const RotaryTable table = SlotRope(frequencies).table(7, 3, at::kDouble, at::kCPU);
  const at::Tensor x = at::randn({2, 3, 8}, at::kDouble), y = SlotRope::apply(x, table);
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t slot = 0; slot < 4; ++slot) {
      const double angle = static_cast<double>(7 + t) * frequencies[static_cast<size_t>(slot)];
      const at::Tensor re = x.select(1, t).select(1, 2 * slot), im = x.select(1, t).select(1, 2 * slot + 1);
      const at::Tensor found = y.select(1, t).narrow(1, 2 * slot, 2);
      const at::Tensor expected =
          at::stack({re * std::cos(angle) - im * std::sin(angle), re * std::sin(angle) + im * std::cos(angle)}, 1);
      EXPECT_LT((found - expected).abs().max().item<double>(), 1e-14);
    }
  }
}

TEST(SlotRope, EqualsHalfSplitRopeOnTheSamePlanes) {
  RopeSpec spec;
  spec.rotary_dim = 12;
  const Rope rope(spec);
  const at::Tensor x = at::randn({2, 5, 12}, at::kDouble);
  const auto pairs = [](const at::Tensor& half_split) {
    return half_split.unflatten(-1, {2, 6}).transpose(-1, -2).flatten(-2);
  };
  const at::Tensor expected = pairs(Rope::apply(x, rope.table(3, 5, 0, at::kDouble, at::kCPU)));
  const at::Tensor found = SlotRope::apply(pairs(x), SlotRope(rope.inv_freq(0)).table(3, 5, at::kDouble, at::kCPU));
  EXPECT_LT((found - expected).abs().max().item<double>(), 1e-14);
}

TEST(SlotRope, MayHaveNoSlots) {
  const at::Tensor x = at::zeros({2, 5, 0}, at::kDouble);
  EXPECT_EQ(SlotRope::apply(x, SlotRope({}).table(0, 5, at::kDouble, at::kCPU)).sizes(), x.sizes());
}

}  // namespace
}  // namespace cinch
