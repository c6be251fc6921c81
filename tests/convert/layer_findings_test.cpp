#include "convert/layer_findings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cinch {
namespace {

using testing::HasSubstr;

Json layer(int64_t index, double before, double after) {
  return {{"layer", index}, {"output_error_before_refit", before}, {"output_error", after}};
}

TEST(SuspiciousLayers, AreThoseFarOffTheMedian) {
  const auto found = suspicious_layers({layer(0, .2, .1), layer(1, .2, .12), layer(2, .9, .5), layer(3, .1, .1)});
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].layer, 2);
  EXPECT_THAT(found[0].reason, HasSubstr("off by 50.0 %"));
}

TEST(SuspiciousLayers, SmallErrorsAreNone) {
  EXPECT_TRUE(suspicious_layers({layer(0, .01, .01), layer(1, .01, .01), layer(2, .09, .09)}).empty());
  EXPECT_TRUE(suspicious_layers({}).empty());
}

TEST(SuspiciousLayers, AreThoseThatTheRefitMadeWorse) {
  const auto found = suspicious_layers({layer(0, .2, .3), layer(1, .2, .2), layer(2, .2, .2)});
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].layer, 0);
  EXPECT_THAT(found[0].reason, HasSubstr("from 20.0 % off to 30.0 %"));
}

TEST(SlotPrice, IsTheRootMeanSquareOverLayers) {
  Json one = layer(0, 0, 0), two = layer(1, 0, 0);
  EXPECT_EQ(slot_price({one, two}).own, 0) << "no slots";
  one["predicted_error"] = .3;
  one["predicted_error_own_slots"] = .1;
  two["predicted_error"] = .4;
  two["predicted_error_own_slots"] = .2;
  EXPECT_NEAR(slot_price({one, two}).shared, std::sqrt(.125), 1e-12);
  EXPECT_NEAR(slot_price({one, two}).own, std::sqrt(.025), 1e-12);
}

}  // namespace
}  // namespace cinch
