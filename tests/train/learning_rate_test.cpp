#include "train/learning_rate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/errors.h"

namespace cinch {
namespace {

TEST(LearningRate, WarmUpStableDecay) {
  const Schedule schedule{.kind = "wsd", .steps = 100, .warmup_steps = 10, .decay_share = 0.2};
  EXPECT_DOUBLE_EQ(schedule.factor(0), 0.1);
  EXPECT_DOUBLE_EQ(schedule.factor(9), 1.0);
  EXPECT_DOUBLE_EQ(schedule.factor(79), 1.0);
  EXPECT_DOUBLE_EQ(schedule.factor(80), 1.0);
  EXPECT_DOUBLE_EQ(schedule.factor(85), 1 - std::sqrt(0.25));
  EXPECT_DOUBLE_EQ(schedule.factor(100), 0.0);
  EXPECT_DOUBLE_EQ(schedule.factor(1000), 0.0);
}

TEST(LearningRate, Cosine) {
  const Schedule schedule{.kind = "cosine", .steps = 110, .warmup_steps = 10, .floor = 0.1};
  EXPECT_DOUBLE_EQ(schedule.factor(10), 1.0);
  EXPECT_NEAR(schedule.factor(60), 0.1 + 0.9 * 0.5, 1e-12);
  EXPECT_NEAR(schedule.factor(110), 0.1, 1e-12);
}

TEST(LearningRate, NeverRisesAfterTheWarmUp) {
  for (const char* kind : {"wsd", "cosine"}) {
    for (const double share : {0.0, 0.3, 1.0}) {
      const Schedule schedule{.kind = kind, .steps = 57, .warmup_steps = 7, .decay_share = share, .floor = 0.05};
      schedule.check();
      for (int64_t step = 7; step < 70; ++step) EXPECT_LE(schedule.factor(step + 1), schedule.factor(step) + 1e-15);
      EXPECT_GT(schedule.factor(0), 0);
    }
  }
}

TEST(LearningRate, RefusesImpossibleNumbers) {
  EXPECT_THROW((Schedule{.kind = "linear", .steps = 10}.check()), UsageError);
  EXPECT_THROW((Schedule{.steps = 0}.check()), UsageError);
  EXPECT_THROW((Schedule{.steps = 10, .warmup_steps = 11}.check()), UsageError);
  EXPECT_THROW((Schedule{.steps = 10, .decay_share = 1.5}.check()), UsageError);
  EXPECT_THROW((Schedule{.steps = 10, .floor = -0.1}.check()), UsageError);
}

}  // namespace
}  // namespace cinch
