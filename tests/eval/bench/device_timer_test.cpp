#include "eval/bench/device_timer.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>

namespace cinch {
namespace {

TEST(DeviceTimer, TimesOneOfTheWorks) {
  const auto sleep = [](int milliseconds) {
    return [milliseconds] { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); };
  };
  const DeviceTimer timer(at::kCPU, {.least_replays = 3, .most_replays = 3});
  const WorkTime time = timer.time({sleep(4), sleep(8)});
  EXPECT_EQ(time.replays, 3);
  EXPECT_FALSE(time.graph);
  EXPECT_GE(time.seconds, 6e-3);  // of one, in the mean
  EXPECT_LE(time.fastest, time.seconds);
  EXPECT_GE(time.slowest, time.seconds);
}

TEST(DeviceTimer, RepeatsWithinItsLimits) {
  int calls = 0;
  const auto count = [&] { ++calls; };
  EXPECT_EQ(DeviceTimer(at::kCPU, {.fill = 1, .least_replays = 2, .most_replays = 7}).time({count, count}).replays, 7);
  EXPECT_EQ(calls, 1 + 2 * (1 + 7)) << "one to see a fault, one round that is not counted, seven that are";
  EXPECT_EQ(DeviceTimer(at::kCPU, {.fill = 0, .least_replays = 2}).time({count}).replays, 2);
}

TEST(DeviceTimer, FaultsOfTheWorkComeThrough) {
  EXPECT_THROW(DeviceTimer(at::kCPU).time({[] { throw std::runtime_error("no such kernel"); }}), std::runtime_error);
}

TEST(DeviceTimer, CopyCountsReadAndWritten) {
  const double speed = DeviceTimer(at::kCPU).copy_speed(int64_t{32} << 20);
  EXPECT_GT(speed, 1e8);   // a loaded machine
  EXPECT_LT(speed, 1e13);  // no memory of this day
  EXPECT_GT(cache_near_processor(at::kCPU), 1 << 16);
}

}  // namespace
}  // namespace cinch
