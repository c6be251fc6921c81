#include "attention/kv_cache.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

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

class PackedKvCache : public testing::TestWithParam<CacheFormat> {
 protected:
  /// Entries (2, 1, T, columns) of bf16 with columns of very different sizes.
  at::Tensor entries(int64_t count) const {
    at::manual_seed(5);
    const at::Tensor sizes = at::logspace(-2, 2, columns_.all(), 10.0, at::kFloat);
    return (at::randn({2, 1, count, columns_.all()}) * sizes).to(at::kBFloat16);
  }
  const CacheColumns columns_{16, 8, 3};
};

TEST_P(PackedKvCache, GivesBackWhatPagesWould) {
  const at::Tensor all = entries(300);
  for (const int64_t window : {0, 5, 100}) {
    KvCache cache(GetParam(), columns_);
    for (const int64_t added : {5, 1, 57, 1, 1, 130, 4, 60, 41}) {
      const int64_t first = cache.tokens(), seen = first + added;
      const at::Tensor more = all.narrow(2, first, added);
      const KvCache::View view = cache.append(more, more.narrow(3, 0, 0), window);
      const at::Tensor expected = as_cached(all.narrow(2, 0, seen).squeeze(1), GetParam(), columns_).unsqueeze(1);
      ASSERT_EQ(view.first_position + view.k.size(2), seen);
      EXPECT_LE(view.first_position, window > 0 ? std::max<int64_t>(0, first - window + 1) : 0);
      EXPECT_TRUE(at::equal(view.k, expected.narrow(2, view.first_position, view.k.size(2)))) << seen;
      if (window > 0) {
        EXPECT_LT(view.k.size(2), window + added + 64);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedKvCache,
                         testing::Values(CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4));

}  // namespace
}  // namespace cinch
