#include "train/flat_weights.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace cinch {
namespace {

TEST(FlatLayout, PadsToEqualAlignedShares) {
  const FlatLayout layout({{"a", {3, 5}}, {"b", {7}}}, 4);
  ASSERT_EQ(layout.entries().size(), 2u);
  EXPECT_EQ(layout.entries()[1].first, 15);
  EXPECT_EQ(layout.entries()[1].count, 7);
  EXPECT_EQ(layout.size(), 22);
  EXPECT_EQ(layout.padded(), 512);
  EXPECT_EQ(layout.share(), 128);
  EXPECT_EQ(FlatLayout({}, 3).padded(), 0);
}

TEST(FlatWeights, ViewsOutliveTheirMemory) {
  at::manual_seed(1);
  const at::Tensor a = at::randn({3, 5}), b = at::randn({7});
  for (const bool sharded : {false, true}) {
    FlatWeights weights(FlatLayout({{"a", {3, 5}}, {"b", {7}}}, 1), at::kFloat, at::kCPU, single_process(), sharded);
    weights.set(0, a);
    weights.set(1, b);
    const at::Tensor view = weights.weight(1);
    for (int use = 0; use < 2; ++use) {
      weights.start_gather();
      weights.gather();
      EXPECT_TRUE(at::equal(weights.weight(0), a));
      EXPECT_TRUE(at::equal(view, b));
      weights.release();
      EXPECT_EQ(weights.whole().storage().nbytes(), sharded ? 0u : 128 * sizeof(float));
    }
  }
}

/// A layer's backward pass comes after its weights were released and gathered again.
TEST(FlatWeights, AGatherIsNoChangeForAutograd) {
  FlatWeights weights(FlatLayout({{"w", {2}}}, 1), at::kFloat, at::kCPU, single_process(), true);
  weights.set(0, at::tensor({2.0F, 3.0F}));
  weights.gather();
  const at::Tensor x = at::ones({2}).requires_grad_(true), w = weights.weight(0).requires_grad_(true);
  const at::Tensor y = (x * w).square().sum();
  weights.release();
  weights.gather();
  y.backward();
  EXPECT_TRUE(at::equal(x.grad(), at::tensor({8.0F, 18.0F})));
  EXPECT_TRUE(at::equal(w.grad(), at::tensor({4.0F, 6.0F})));
}

}  // namespace
}  // namespace cinch
