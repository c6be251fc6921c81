#include "convert/solvers/head_groups.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

using ::testing::ElementsAre;

/// Heads (N, K, D) -> moments; keys and values are the same.
HeadMoments moments_of(const at::Tensor& heads) {
  const at::Tensor moment = joint_moment(heads.flatten(1, 2), heads.size(1));
  return {.key = moment, .query = {}, .value = moment};
}

/// Heads of one group share a signal; `group[k]` is the group of head k.
at::Tensor planted(const std::vector<int64_t>& group, int64_t head_dim, double noise) {
  at::manual_seed(7);
  const int64_t groups = *std::max_element(group.begin(), group.end()) + 1;
  const at::Tensor signals = at::randn({20 * head_dim, groups, head_dim}, at::kDouble);
  const at::Tensor heads = signals.index_select(1, at::tensor(group, at::kLong));
  return heads + noise * at::randn_like(heads);
}

TEST(HeadGroups, PlantedGroupsAreFound) {
  const HeadPlanes planes = planes_of(6, 6);
  EXPECT_THAT(search_groups(planes, moments_of(planted({0, 1, 2, 0, 1, 2}, 6, 0.3)), 3, 4, 1),
              ElementsAre(0, 3, 1, 4, 2, 5));
  EXPECT_THAT(search_groups(planes, moments_of(planted({0, 1, 2, 2, 1, 0, 0, 2, 1}, 6, 0.3)), 3, 4, 1),
              ElementsAre(0, 5, 6, 1, 4, 8, 2, 3, 7));
  EXPECT_THAT(search_groups(planes_of(48, 32), moments_of(planted({0, 1, 1, 0}, 48, 0.3)), 2, 0, 1),
              ElementsAre(0, 3, 1, 2));
}

TEST(HeadGroups, LargeGroupsAreJudgedByTheirPairs) {
  // 12870 possible groups of 8 among 16: too many to weigh each.
  std::vector<int64_t> group;
  for (int64_t k = 0; k < 16; ++k) group.push_back((k * 5 / 3 + k) % 2);
  const auto ones = std::count(group.begin(), group.end(), 1);
  for (size_t k = 0; ones != 8 && k < group.size(); ++k) group[k] = static_cast<int64_t>(k) % 2;
  const std::vector<int64_t> order = search_groups(planes_of(4, 4), moments_of(planted(group, 4, 0.2)), 2, 2, 1);
  for (size_t place = 0; place < 16; ++place) {
    EXPECT_EQ(group[static_cast<size_t>(order[place])], group[static_cast<size_t>(order[place / 8 * 8])]) << place;
  }
  EXPECT_TRUE(std::is_sorted(order.begin(), order.begin() + 8));
  EXPECT_TRUE(std::is_sorted(order.begin() + 8, order.end()));
}

TEST(HeadGroups, NoOtherPairsOfFourHeadsDiscardLess) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    at::manual_seed(seed);
    const at::Tensor mixing = at::randn({8, 4 * 6}, at::kDouble);
    const at::Tensor heads = at::matmul(at::randn({100, 8}, at::kDouble), mixing).reshape({100, 4, 6});
    // What a pair discards, from singular values of the samples themselves.
    const auto discarded = [&](int64_t a, int64_t b) {
      const at::Tensor pair = at::stack({heads.select(1, a), heads.select(1, b)}, 1);  // (N, 2, D)
      const at::Tensor value = at::linalg_svdvals(pair.flatten(1, 2)).square();
      const at::Tensor x = pair.reshape({100, 2, 2, 3});
      const at::Tensor z = at::complex(x.select(2, 0).contiguous(), x.select(2, 1).contiguous()).permute({2, 0, 1});
      const at::Tensor key = at::linalg_svdvals(z.contiguous()).square();  // (P, 2)
      return (2 - value.slice(0, 0, 6).sum() / value.sum() - key.select(1, 0).sum() / key.sum()).item<double>();
    };
    const auto cost = [&](const std::vector<int64_t>& order) {
      return discarded(order[0], order[1]) + discarded(order[2], order[3]);
    };
    const double found = cost(search_groups(planes_of(6, 6), moments_of(heads), 2, 3, 1));
    for (const auto& order : std::vector<std::vector<int64_t>>{{0, 1, 2, 3}, {0, 2, 1, 3}, {0, 3, 1, 2}}) {
      EXPECT_LE(found, cost(order) + 1e-12) << seed;
    }
  }
}

TEST(HeadGroups, NothingToChoose) {
  const HeadMoments moments = moments_of(planted({0, 1, 0, 1}, 6, 0.3));
  EXPECT_THAT(search_groups(planes_of(6, 6), moments, 4, 3, 1), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(search_groups(planes_of(6, 6), moments, 1, 3, 1), ElementsAre(0, 1, 2, 3));
}

TEST(HeadGroups, ASeedDecidesEverything) {
  at::manual_seed(9);
  const HeadMoments moments = moments_of(at::randn({60, 8, 4}, at::kDouble));
  const std::vector<int64_t> once = search_groups(planes_of(4, 4), moments, 4, 3, 42);
  EXPECT_EQ(search_groups(planes_of(4, 4), moments, 4, 3, 42), once);
  std::vector<int64_t> sorted = once;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_THAT(sorted, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

}  // namespace
}  // namespace cinch
