#include "eval/bench/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace cinch {
namespace {

TEST(BenchStatistics, InterpolatesBetweenNeighbours) {
  // numpy.percentile([4, 1, 3, 2], [0, 25, 50, 90, 100])
  const std::vector<double> values = {4, 1, 3, 2};
  EXPECT_DOUBLE_EQ(percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(percentile(values, 0.25), 1.75);
  EXPECT_DOUBLE_EQ(median(values), 2.5);
  EXPECT_DOUBLE_EQ(percentile(values, 0.9), 3.7);
  EXPECT_DOUBLE_EQ(percentile(values, 1), 4);
}

TEST(BenchStatistics, OneValueIsEveryPercentile) {
  for (const double q : {0.0, 0.3, 1.0}) EXPECT_DOUBLE_EQ(percentile({7}, q), 7);
  EXPECT_DOUBLE_EQ(median({9, 1, 5}), 5);
}

TEST(BenchStatistics, RefusesNothing) {
  EXPECT_THROW(median({}), std::invalid_argument);
  EXPECT_THROW(percentile({1}, -0.1), std::invalid_argument);
  EXPECT_THROW(percentile({1}, 1.1), std::invalid_argument);
  EXPECT_THROW(percentile({1}, NAN), std::invalid_argument);
}

}  // namespace
}  // namespace cinch
