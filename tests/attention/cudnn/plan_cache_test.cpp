#include "attention/kernels/cudnn/plan_cache.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace cinch {
namespace {

using Cache = PlanCache<int>;

Cache::Pointer value(int number) { return std::make_shared<const int>(number); }

TEST(PlanCache, KeepsTheLatestAskedFor) {
  Cache cache(2);
  cache.find_or_build("a", [] { return value(1); });
  cache.find_or_build("b", [] { return value(2); });
  EXPECT_EQ(*cache.find("a"), 1);  // b was not asked for longest
  cache.find_or_build("c", [] { return value(3); });
  EXPECT_EQ(cache.find("b"), nullptr);
  EXPECT_EQ(*cache.find("a"), 1);
  EXPECT_EQ(*cache.find("c"), 3);
  EXPECT_EQ(cache.size(), 2U);
}

TEST(PlanCache, BuildsOnce) {
  Cache cache(4);
  int built = 0;
  for (int i = 0; i < 3; ++i) {
    cache.find_or_build("a", [&] { return value(++built); });
  }
  EXPECT_EQ(built, 1);
  cache.keep("a", value(7));
  EXPECT_EQ(*cache.find("a"), 7);
  EXPECT_EQ(cache.size(), 1U);
}

TEST(PlanCache, AFailureKeepsNothing) {
  Cache cache(4);
  EXPECT_THROW(cache.find_or_build("a", []() -> Cache::Pointer { throw std::runtime_error("no"); }),
               std::runtime_error);
  EXPECT_EQ(cache.size(), 0U);
  EXPECT_EQ(*cache.find_or_build("a", [] { return value(1); }), 1);
}

TEST(PlanCache, ADroppedValueLivesWhileItIsUsed) {
  Cache cache(1);
  const Cache::Pointer used = cache.find_or_build("a", [] { return value(1); });
  cache.find_or_build("b", [] { return value(2); });
  EXPECT_EQ(cache.find("a"), nullptr);
  EXPECT_EQ(*used, 1);
}

TEST(PlanCache, ThreadsGetOneValue) {
  Cache cache(8);
  std::atomic<int> built{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        const int number = i % 5;
        const auto found = cache.find_or_build(std::to_string(number), [&] { return ++built, value(number); });
        EXPECT_EQ(*found, number);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(built, 5);
}

}  // namespace
}  // namespace cinch
