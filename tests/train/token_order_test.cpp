#include "train/token_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/errors.h"

namespace cinch {
namespace {

std::vector<int64_t> epoch_of(const TokenOrder& order, int64_t epoch) {
  std::vector<int64_t> seen;
  for (int64_t i = 0; i < order.samples(); ++i) seen.push_back(order.sample(epoch * order.samples() + i));
  return seen;
}

TEST(TokenOrder, EveryEpochVisitsEverySampleOnce) {
  for (const int64_t samples : {1, 2, 3, 4, 5, 16, 17, 1000, 4097}) {
    const TokenOrder order(samples, 7);
    std::vector<int64_t> all(static_cast<size_t>(samples));
    std::iota(all.begin(), all.end(), int64_t{0});
    for (const int64_t epoch : {0, 1, 9}) {
      std::vector<int64_t> seen = epoch_of(order, epoch);
      std::sort(seen.begin(), seen.end());
      EXPECT_EQ(seen, all) << samples;
    }
  }
}

TEST(TokenOrder, EpochsAndSeedsHaveOrdersOfTheirOwn) {
  const TokenOrder order(1000, 1);
  const auto first = epoch_of(order, 0);
  EXPECT_EQ(first, epoch_of(TokenOrder(1000, 1), 0));
  EXPECT_NE(first, epoch_of(order, 1));
  EXPECT_NE(first, epoch_of(TokenOrder(1000, 2), 0));
}

// A random permutation has one fixed point on average, and neighbours end up a third of the way apart.
TEST(TokenOrder, LooksRandom) {
  const int64_t samples = 4000;
  int64_t fixed = 0;
  double distance = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto seen = epoch_of(TokenOrder(samples, seed), 0);
    for (int64_t i = 0; i + 1 < samples; ++i) {
      fixed += seen[static_cast<size_t>(i)] == i;
      distance += std::abs(static_cast<double>(seen[static_cast<size_t>(i + 1)] - seen[static_cast<size_t>(i)]));
    }
  }
  EXPECT_LT(fixed, 60);
  EXPECT_NEAR(distance / (20.0 * samples * samples), 1.0 / 3, 0.01);
}

TEST(TokenOrder, NeedsSamples) {
  EXPECT_THROW(TokenOrder(0, 1), UsageError);
  EXPECT_THROW(TokenOrder(-5, 1), UsageError);
}

}  // namespace
}  // namespace cinch
