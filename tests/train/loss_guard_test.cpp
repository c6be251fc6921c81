#include "train/loss_guard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(LossGuard, RefusesWhatIsNoNumberAndWhatIsFarOutside) {
  LossGuard guard({.deviations = 6, .window = 64, .fewest = 16});
  EXPECT_FALSE(guard.accepts(kNan, 1));
  EXPECT_TRUE(guard.accepts(1000, 1));  // nothing is known yet
  LossGuard used({.deviations = 6, .window = 64, .fewest = 16});
  for (int i = 0; i < 40; ++i) EXPECT_TRUE(used.accepts(2 + 0.1 * std::sin(i), 1 + 0.1 * std::cos(i))) << i;
  EXPECT_TRUE(used.accepts(2.3, 1));
  EXPECT_FALSE(used.accepts(3, 1));
  EXPECT_FALSE(used.accepts(2, 5));
  EXPECT_FALSE(used.accepts(2, std::numeric_limits<double>::infinity()));
  EXPECT_TRUE(used.accepts(0.1, 0.1));  // better is no fault
  LossGuard off({.deviations = 0, .fewest = 2});
  for (const double loss : {1.0, 1.0, 1.0, 50.0}) EXPECT_TRUE(off.accepts(loss, 1));
  EXPECT_FALSE(off.accepts(kNan, 1));
}

TEST(LossGuard, StopsARunThatHasDiverged) {
  LossGuard guard({.most_refused = 2});
  EXPECT_FALSE(guard.accepts(kNan, 1));
  EXPECT_FALSE(guard.accepts(kNan, 1));
  EXPECT_TRUE(guard.accepts(1, 1));  // which starts the count again
  EXPECT_FALSE(guard.accepts(kNan, 1));
  EXPECT_FALSE(guard.accepts(kNan, 1));
  EXPECT_THROW(guard.accepts(kNan, 1), Error);
}

TEST(LossGuard, GoesOnFromItsState) {
  LossGuard first({.fewest = 8}), second({.fewest = 8});
  for (int i = 0; i < 20; ++i) first.accepts(2 + 0.1 * std::sin(i), 1.0 / 3 + i);
  first.accepts(kNan, 1);
  second.restore(JsonObject(Json::parse(first.to_json().dump()), "state"));
  EXPECT_EQ(first.to_json(), second.to_json());
  EXPECT_FALSE(second.accepts(9, 1));
}

}  // namespace
}  // namespace cinch
