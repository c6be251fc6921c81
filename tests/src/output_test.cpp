#include "src/output.h"

#include <gtest/gtest.h>

#include <cmath>

namespace cinch {
namespace {

TEST(Output, Bytes) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.00 KiB");
  EXPECT_EQ(human_bytes(uint64_t{3} << 30), "3.00 GiB");
  EXPECT_EQ(human_bytes(45 * 1024 * 1024), "45.0 MiB");
}

TEST(Output, Counts) {
  EXPECT_EQ(human_count(9999), "9999");
  EXPECT_EQ(human_count(134515008), "134.5 M");
  EXPECT_EQ(human_count(7000000000), "7.00 B");
}

TEST(Output, TablesAlignByWidthNotBytes) {
  EXPECT_EQ(format_table({{"a", "b"}, {"± x", "10"}, {"long", "5"}}), "a      b\n± x   10\nlong   5\n");
}

TEST(Output, NanBecomesNull) {
  testing::internal::CaptureStdout();
  print_json({{"x", std::nan("")}});
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "{\n  \"x\": null\n}\n");
}

}  // namespace
}  // namespace cinch
