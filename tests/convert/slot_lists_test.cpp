#include "convert/transforms/slot_lists.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/errors.h"
#include "tests/convert/latent_case.h"

namespace cinch {
namespace {

/// 32 planes at theta 1e5, the last two unrotated.
HeadPlanes some_planes() {
  HeadPlanes planes{.head_dim = 64, .planes = 32, .rotated = 30};
  planes.frequency = (at::arange(32, at::kDouble) * (-std::log(1e5) / 32)).exp();
  planes.frequency.slice(0, 30).zero_();
  return planes;
}

class GeometricLists : public testing::TestWithParam<int64_t> {};

TEST_P(GeometricLists, EverySlotHasAGroupNearItAndEveryPlaneOneGroup) {
  const HeadPlanes planes = some_planes();
  const std::vector<SlotList> lists = geometric_lists(planes, GetParam());
  ASSERT_FALSE(lists.empty());
  for (const SlotList& list : lists) {
    ASSERT_EQ(list.slots.size(), static_cast<size_t>(GetParam() / 2));
    int64_t next = 0;
    for (const PlaneGroup& group : list.groups) {
      EXPECT_EQ(group.first, next);
      EXPECT_GE(group.planes, 1);
      next += group.planes;
    }
    EXPECT_EQ(next, planes.planes);
    for (size_t s = 0; s < list.slots.size(); ++s) {
      const RotarySlot& slot = list.slots[s];
      EXPECT_NEAR(slot.frequency, std::pow(list.slots[list.slots.size() > 1 ? 1 : 0].frequency, static_cast<double>(s)),
                  1e-12);
      EXPECT_GT(slot.group, s > 0 ? list.slots[s - 1].group : -1) << "one slot per group";
      const PlaneGroup& group = list.groups[static_cast<size_t>(slot.group)];
      EXPECT_LE(group.first + group.planes, planes.rotated);
      EXPECT_LE(group.planes, planes_per_group(planes, group.first + group.planes - 1));
      const double first = planes.frequency[group.first].item<double>();
      const double last = planes.frequency[group.first + group.planes - 1].item<double>();
      const double spacing = list.slots.size() > 1 ? -std::log(list.slots[1].frequency) : 1.0;
      EXPECT_LE(std::log(first) - std::log(slot.frequency), spacing / 2 + 1e-9);
      EXPECT_LE(std::log(slot.frequency) - std::log(last), spacing / 2 + 1e-9);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, GeometricLists, testing::Values(2, 8, 16, 22, 30, 32, 48, 60),
                         [](const auto& size) { return std::to_string(size.param); });

TEST(GeometricListsOf, LeadingPlanesAndEverySecondAreAmongThem) {
  HeadPlanes planes{.head_dim = 64, .planes = 32, .rotated = 32};
  planes.frequency = (at::arange(32, at::kDouble) * (-std::log(1e5) / 32)).exp();
  const std::vector<SlotList> lists = geometric_lists(planes, 32);
  for (int64_t s = 0; s < 16; ++s) {
    EXPECT_NEAR(lists.front().slots[s].frequency, planes.frequency[s].item<double>(), 1e-12);
    EXPECT_NEAR(lists.back().slots[s].frequency, planes.frequency[2 * s].item<double>(), 1e-12);
  }
  EXPECT_THROW(geometric_lists(planes, 66), UsageError);
  EXPECT_TRUE(geometric_lists(planes, 0).front().slots.empty());
}

TEST(GeometricListsOf, TheOneThatLosesLeastIsChosen) {
  at::manual_seed(5);
  const LatentCase setting{.name = "gqa"};
  const LatentLayer layer(setting, setting.random_weights(), at::randn({3, 20, setting.hidden()}, at::kDouble));
  const int64_t width = setting.head_dim / 2;
  const SlotVote vote(layer.heads, layer.moments, width, SlotRule::geometric);
  const auto lost = [&](const SlotList& list) {
    return RotarySurvey(layer.heads, layer.moments, list.groups).energies(list.slots).lost;
  };
  const double chosen = lost(choose_slot_list({&vote, &vote}));
  for (const SlotList& list : geometric_lists(layer.heads.planes, width)) EXPECT_LE(chosen, lost(list));
}

}  // namespace
}  // namespace cinch
