#include "attention/kv_cache.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace cinch {
namespace {

/// (B, K, T, D) whose numbers are the positions.
at::Tensor positions(int64_t first, int64_t count, at::ScalarType dtype = at::kFloat) {
  return at::arange(first, first + count, at::TensorOptions(dtype)).view({1, 1, count, 1}).expand({2, 3, count, 10});
}

TEST(KvCache, ReturnsEverythingInOrder) {
  KvCache cache;
  int64_t seen = 0;
  for (const int64_t added : {5, 1, 1, 90, 1, 200, 1}) {
    const KvCache::View view = cache.append(positions(seen, added), positions(seen, added) + 0.5, 0);
    seen += added;
    EXPECT_EQ(cache.tokens(), seen);
    EXPECT_EQ(view.first_position, 0);
    EXPECT_TRUE(at::equal(view.k, positions(0, seen)));
    EXPECT_TRUE(at::equal(view.v, positions(0, seen) + 0.5));
  }
}

TEST(KvCache, WindowKeepsWhatLaterQueriesSee) {
  constexpr int64_t kWindow = 7;
  KvCache cache;
  int64_t seen = 0;
  for (const int64_t added : {3, 20, 1, 1, 1, 9, 1, 64, 1, 1}) {
    const KvCache::View view = cache.append(positions(seen, added), positions(seen, added), kWindow);
    EXPECT_LE(view.first_position, std::max<int64_t>(0, seen - kWindow + 1));  // the oldest new query sees these
    seen += added;
    EXPECT_EQ(view.first_position + view.k.size(2), seen);
    EXPECT_TRUE(at::equal(view.k, positions(view.first_position, view.k.size(2))));
  }
  for (int64_t step = 0; step < 1000; ++step, ++seen) {
    const KvCache::View view = cache.append(positions(seen, 1), positions(seen, 1), kWindow);
    ASSERT_EQ(view.k.size(2), kWindow);
    ASSERT_TRUE(at::equal(view.k, positions(seen - kWindow + 1, kWindow)));
  }
}

TEST(KvCache, CountsBytesOfOneToken) {
  KvCache cache;
  EXPECT_EQ(cache.bytes_per_token(), 0);
  cache.append(positions(0, 3), positions(0, 3), 0);
  EXPECT_EQ(cache.bytes_per_token(), 2 * 3 * 10 * 4);
  KvCache half;
  half.append(positions(0, 3, at::kHalf), positions(0, 3, at::kHalf), 0);
  EXPECT_EQ(half.bytes_per_token(), 2 * 3 * 10 * 2);
}

}  // namespace
}  // namespace cinch
