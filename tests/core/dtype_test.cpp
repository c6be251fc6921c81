#include "core/dtype.h"

#include <gtest/gtest.h>

namespace cinch {
namespace {

TEST(Dtype, NamesAndSizes) {
  EXPECT_EQ(dtype_name(Dtype::kBool), "BOOL");
  EXPECT_EQ(dtype_name(Dtype::kF8E4M3Fnuz), "F8_E4M3FNUZ");
  EXPECT_EQ(dtype_name(Dtype::kC64), "C64");
  EXPECT_EQ(dtype_bits(Dtype::kF4), 4);
  EXPECT_EQ(dtype_bits(Dtype::kF6E3M2), 6);
  EXPECT_EQ(dtype_bits(Dtype::kBF16), 16);
  EXPECT_EQ(dtype_bits(Dtype::kF64), 64);
  EXPECT_EQ(dtype_bits(Dtype::kI64), 64);
}

TEST(Dtype, EveryNameIsFoundAgain) {
  for (int i = 0; i <= static_cast<int>(Dtype::kC64); ++i) {
    const auto dtype = static_cast<Dtype>(i);
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  }
  EXPECT_FALSE(dtype_from_name("f32").has_value());
  EXPECT_FALSE(dtype_from_name("").has_value());
}

TEST(Dtype, WeightTypes) {
  EXPECT_TRUE(is_weight_dtype(Dtype::kBF16));
  EXPECT_FALSE(is_weight_dtype(Dtype::kI32));
  EXPECT_FALSE(is_weight_dtype(Dtype::kF8E4M3));
}

}  // namespace
}  // namespace cinch
