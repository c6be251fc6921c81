#include "checkpoints/layout.h"

#include <gtest/gtest.h>

#include "core/errors.h"

namespace cinch {
namespace {

TEST(CheckedBytes, CountsBits) {
  EXPECT_EQ(checked_bytes({3, 5}, 32, "x"), 60u);
  EXPECT_EQ(checked_bytes({}, 64, "x"), 8u);
  EXPECT_EQ(checked_bytes({4}, 6, "x"), 3u);
  EXPECT_EQ(checked_bytes({0, 7}, 32, "x"), 0u);
}

TEST(CheckedBytes, RefusesWhatCannotBe) {
  EXPECT_THROW(checked_bytes({3}, 4, "x"), CheckpointError);
  EXPECT_THROW(checked_bytes({-1}, 8, "x"), CheckpointError);
  EXPECT_THROW(checked_bytes({INT64_MAX, 2}, 8, "x"), CheckpointError);
  EXPECT_THROW(checked_bytes({INT64_MAX, 2, 0}, 8, "x"), CheckpointError);
  EXPECT_THROW(checked_bytes({INT64_MAX}, 8, "x"), CheckpointError);
  EXPECT_THROW(checked_multiply(uint64_t{1} << 32, uint64_t{1} << 32, "x"), CheckpointError);
}

TEST(Utf8, AcceptsTextOnly) {
  for (const char* good : {"", "abc", "é", "日本", "\U0001F600", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(is_valid_utf8(good)) << good;
  }
  for (const char* bad : {"\x80", "\xc0\xaf", "\xc3", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
                          "\xf4\x90\x80\x80", "\xff", "a\xe2\x82"}) {
    EXPECT_FALSE(is_valid_utf8(bad));
  }
}

TEST(RowRange, OfSubByteTypesNeedsWholeBytes) {
  const TensorInfo even{"a", Dtype::kF4, {3, 4}, ""};
  EXPECT_EQ(row_range(even, 1, 3, "f").offset, 2u);
  EXPECT_EQ(row_range(even, 1, 3, "f").size, 4u);
  const TensorInfo odd{"a", Dtype::kF4, {4, 3}, ""};
  EXPECT_THROW(row_range(odd, 1, 2, "f"), CheckpointError);
  EXPECT_EQ(row_range(odd, 2, 4, "f").offset, 3u);
}

}  // namespace
}  // namespace cinch
