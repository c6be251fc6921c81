#include "checkpoints/formats/gguf_blocks.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace cinch {
namespace {

TEST(Half, EveryHalfMakesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = half_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(value))));
    } else {
      ASSERT_EQ(float_to_half(value), bits);
    }
  }
}

TEST(Half, RoundsToNearestEven) {
  // Between each pair of neighbours: the middle goes to the even one, anything off the middle to the nearer one.
  for (uint16_t bits = 0; bits < 0x7BFF; ++bits) {
    const float low = half_to_float(bits), high = half_to_float(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;
    ASSERT_EQ(float_to_half(middle), bits % 2 == 0 ? bits : bits + 1) << bits;
    ASSERT_EQ(float_to_half(std::nextafter(middle, low)), bits) << bits;
    ASSERT_EQ(float_to_half(std::nextafter(middle, high)), bits + 1) << bits;
    ASSERT_EQ(float_to_half(-middle), 0x8000 | (bits % 2 == 0 ? bits : bits + 1)) << bits;
  }
}

TEST(Half, BeyondTheRange) {
  EXPECT_EQ(float_to_half(65519.996f), 0x7BFF);
  EXPECT_EQ(float_to_half(65520.0f), 0x7C00);
  EXPECT_EQ(float_to_half(-1e30f), 0xFC00);
  EXPECT_EQ(float_to_half(1e-30f), 0);
  EXPECT_EQ(float_to_half(-0.0f), 0x8000);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::infinity()), 0x7C00);
}

TEST(Blocks, HandMadeQ4) {
  // scale 2, offset -1: value i of the first half is the low nibble of byte i, of the second half the high one.
  std::vector<std::byte> block(20);
  const uint16_t scale = float_to_half(2.0f), offset = float_to_half(-1.0f);
  std::memcpy(block.data(), &scale, 2);
  std::memcpy(block.data() + 2, &offset, 2);
  for (int i = 0; i < 16; ++i) block[4 + static_cast<size_t>(i)] = static_cast<std::byte>(i | ((15 - i) << 4));
  std::vector<float> values(32);
  dequantize(*gguf_tensor_type("Q4_1"), block, values);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(values[static_cast<size_t>(i)], 2.0f * static_cast<float>(i) - 1);
    EXPECT_EQ(values[static_cast<size_t>(i) + 16], 2.0f * static_cast<float>(15 - i) - 1);
  }
  block.erase(block.begin() + 2, block.begin() + 4);
  dequantize(*gguf_tensor_type("Q4_0"), block, values);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], 2.0f * static_cast<float>(i - 8));
}

TEST(Blocks, Q8RoundsHalvesAwayFromZero) {
  std::vector<float> values(32, 0.0f);
  values[0] = 127.0f;  // scale 1
  values[1] = 0.5f;
  values[2] = -0.5f;
  values[3] = 2.5f;
  values[4] = -127.0f;
  std::vector<std::byte> block(34);
  quantize_q8_0(values, block);
  const auto at = [&](size_t i) { return static_cast<int>(static_cast<int8_t>(block[2 + i])); };
  EXPECT_EQ(at(0), 127);
  EXPECT_EQ(at(1), 1);
  EXPECT_EQ(at(2), -1);
  EXPECT_EQ(at(3), 3);
  EXPECT_EQ(at(4), -127);
}

TEST(Types, NamesOfForeignOnes) {
  EXPECT_EQ(gguf_foreign_type_name(12), "Q4_K");
  EXPECT_EQ(gguf_foreign_type_name(30), "BF16");
  EXPECT_EQ(gguf_foreign_type_name(39), "MXFP4");
  EXPECT_EQ(gguf_foreign_type_name(1000), "an unknown type");
  EXPECT_FALSE(gguf_tensor_type(12).has_value());
  EXPECT_EQ(gguf_tensor_type(30)->name, "BF16");
}

}  // namespace
}  // namespace cinch
