#include "attention/cache_format.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "attention/cache_precision.h"
#include "attention/kernels/decode/page_codec.h"
#include "core/errors.h"

namespace cinch {
namespace {

using decode::fp8_from_float;
using decode::fp8_to_float;

const std::vector<CacheFormat> kPacked = {CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4};

/// (B, T, columns), columns of very different sizes; key scales positive.
at::Tensor some_rows(int64_t batch, int64_t tokens, const CacheColumns& columns, at::ScalarType type) {
  const at::Tensor x = at::randn({batch, tokens, columns.all()}, at::kDouble) *
                           at::randn({1, 1, columns.all()}, at::kDouble).mul(2).exp() +
                       at::randn({1, 1, columns.all()}, at::kDouble) * 3;
  x.narrow(2, columns.latent + columns.rotary, columns.key_scales).abs_();
  return x.to(type);
}

TEST(CacheFormat, NamesAndForms) {
  for (const auto& [text, format, name] :
       {std::tuple{"16", CacheFormat::sixteen_bit, "16 bit"}, std::tuple{"8", CacheFormat::int8, "int8"},
        std::tuple{"fp8", CacheFormat::fp8, "fp8"}, std::tuple{"4", CacheFormat::int4, "int4"}}) {
    EXPECT_EQ(parse_cache_format(text), format);
    EXPECT_EQ(name_of(format), name);
  }
  for (const char* wrong : {"", "int8", "2", "FP8", "8 "}) {
    try {
      parse_cache_format(wrong);
      FAIL() << wrong;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(fmt::format("\"{}\"", wrong)));
      EXPECT_THAT(describe_error(error).help, testing::HasSubstr("16, 8, fp8, 4"));
    }
  }
}

TEST(CacheFormat, BytesOfATokenCountScalesAndPadding) {
  AttentionSpec latent;
  latent.kind = AttentionKind::latent;
  latent.n_kv_heads = 3;
  latent.kv_lora_rank = 72;
  latent.qk_rope_head_dim = 16;
  EXPECT_EQ(bytes_per_token(latent, CacheFormat::sixteen_bit), 88 * 2);
  EXPECT_EQ(bytes_per_token(latent, CacheFormat::int8), 96 + 4);  // rows begin at multiples of 16 bytes
  EXPECT_EQ(bytes_per_token(latent, CacheFormat::fp8), 96 + 4);
  EXPECT_EQ(bytes_per_token(latent, CacheFormat::int4), 48 + 88 * 4 / 64.0);  // scale and zero of each channel
  latent.key_scale_tail = true;
  EXPECT_EQ(bytes_per_token(latent, CacheFormat::sixteen_bit), 91 * 2);
  EXPECT_EQ(bytes_per_token(latent, CacheFormat::int4), 48 + 88 * 4 / 64.0 + 6);
  EXPECT_EQ(page_bytes(CacheFormat::int8, cache_columns(latent)), 64 * (96 + 4 + 6));
  AttentionSpec grouped;
  grouped.n_kv_heads = 3;
  grouped.head_dim = 16;
  for (const CacheFormat format : {CacheFormat::sixteen_bit, CacheFormat::int8, CacheFormat::int4})
    EXPECT_EQ(bytes_per_token(grouped, format), 2 * 2 * 3 * 16);
  EXPECT_THROW(cache_columns(grouped), ShapeError);
}

/// Every finite code, the middle between it and the next (which goes to the even one), and what is a little to its
/// sides.
TEST(CacheFormat, Fp8RoundsToTheNearestNumberHalfToEven) {
  for (uint8_t code = 0; code < 0x7e; ++code) {
    const double x = static_cast<double>(fp8_to_float(code));
    const int exponent = code >> 3, mantissa = code & 7;
    EXPECT_EQ(x, exponent == 0 ? mantissa * std::ldexp(1, -9) : (8 + mantissa) * std::ldexp(1, exponent - 10));
    const auto next = static_cast<uint8_t>(code + 1);
    const double y = static_cast<double>(fp8_to_float(next));
    for (const int sign : {1, -1}) {
      const auto coded = [&](double value) {
        return fp8_from_float(static_cast<float>(sign * value)) & (sign > 0 ? 0xff : 0x7f);
      };
      EXPECT_EQ(coded(x), code);
      EXPECT_EQ(coded((x + y) / 2), code % 2 == 0 ? code : next);
      EXPECT_EQ(coded(x * 0.49 + y * 0.51), next);
      EXPECT_EQ(coded(x * 0.51 + y * 0.49), code);
    }
  }
  EXPECT_EQ(fp8_to_float(0x7e), 448);
  EXPECT_EQ(fp8_from_float(1e9F), 0x7e);
  EXPECT_EQ(fp8_from_float(-449), 0xfe);
  EXPECT_TRUE(std::isnan(fp8_to_float(0x7f)));
}

at::Tensor bf16(const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kFloat); }

/// int8 and fp8 by ATen's own operations: fp8 through its e4m3 type.
at::Tensor by_hand(const at::Tensor& rows, CacheFormat format) {
  const at::Tensor x = rows.to(at::kFloat);
  const bool int8 = format == CacheFormat::int8;
  const at::Tensor scale = bf16(x.abs().amax(-1, /*keepdim=*/true) / (int8 ? 127 : 448));
  const at::Tensor steps = x / scale.masked_fill(scale == 0, 1);
  const at::Tensor code =
      int8 ? steps.round().clamp(-127, 127) : steps.clamp(-448, 448).to(at::kFloat8_e4m3fn).to(at::kFloat);
  return (code * scale).to(rows.scalar_type());
}

TEST(CacheFormat, TokensHaveAScaleForTheLatentAndOneForTheRotaryKeys) {
  at::manual_seed(21);
  const CacheColumns columns{40, 24, 3};
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble}) {
    at::Tensor rows = some_rows(2, 70, columns, type);
    rows.select(1, 5).zero_();
    rows.select(1, 6).narrow(1, 0, 40).mul_(1e-4);
    for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8}) {
      const at::Tensor found = as_cached(rows, format, columns);
      EXPECT_EQ(found.scalar_type(), type);
      EXPECT_TRUE(at::equal(found.narrow(2, 0, 40), by_hand(rows.narrow(2, 0, 40), format))) << type;
      EXPECT_TRUE(at::equal(found.narrow(2, 40, 24), by_hand(rows.narrow(2, 40, 24), format))) << type;
      EXPECT_TRUE(at::equal(found.narrow(2, 64, 3), rows.narrow(2, 64, 3)));
    }
  }
}

/// The rule of cache_precision.h, bit for bit, in full pages; the open page stays as it is.
TEST(CacheFormat, Int4IsFourBitsPerChannelOfFullPages) {
  at::manual_seed(22);
  const CacheColumns columns{72, 8, 2};
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat}) {
    at::Tensor rows = some_rows(2, 150, columns, type);
    rows.select(2, 3).mul_(type == at::kHalf ? 1000 : 1e6);  // beyond fp16 where the type holds it
    rows.select(2, 4).fill_(-0.37);
    rows.select(2, 5).mul_(1e-9);
    rows.select(2, 6).narrow(1, 0, 64).copy_(at::zeros({2, 64}).masked_fill_(at::rand({2, 64}) < 0.5, -0.0));
    const at::Tensor found = as_cached(rows, CacheFormat::int4, columns);
    const at::Tensor expected =
        rounded_per_channel(rows.narrow(1, 0, 128).narrow(2, 0, 80).unsqueeze(1), {.bits = 4}).squeeze(1);
    EXPECT_TRUE(at::equal(found.narrow(1, 0, 128).narrow(2, 0, 80), expected)) << type;
    EXPECT_TRUE(at::equal(found.narrow(2, 80, 2), rows.narrow(2, 80, 2)));
    EXPECT_TRUE(at::equal(found.narrow(1, 128, 22), rows.narrow(1, 128, 22)));
  }
}

TEST(CacheFormat, PagesGiveBackWhatAsCachedSays) {
  at::manual_seed(23);
  for (const CacheColumns& columns : {CacheColumns{16, 8, 0}, CacheColumns{136, 24, 5}, CacheColumns{13, 6, 1}}) {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
      for (const int64_t tokens : {1, 64, 65, 200}) {
        const at::Tensor rows = some_rows(3, tokens, columns, type);
        for (const CacheFormat format : kPacked) {
          const int64_t held = format == CacheFormat::int4 ? tokens / 64 * 64 : tokens;
          const at::Tensor pages = packed_pages(rows, format, columns);
          EXPECT_EQ(pages.sizes(), (at::IntArrayRef{3, (held + 63) / 64, page_bytes(format, columns)}));
          const at::Tensor back = unpacked_rows(pages, held, format, columns, type);
          EXPECT_TRUE(at::equal(back, as_cached(rows, format, columns).narrow(1, 0, held)));
        }
      }
    }
  }
}

/// Bytes where page_layout.h says they are.
TEST(CacheFormat, PagesAreLaidOutAsWritten) {
  const CacheColumns columns{16, 8, 1};
  at::Tensor rows = at::zeros({1, 64, 25}, at::kBFloat16);
  rows[0][3][2] = 254.0;  // of the latent: scale 2
  rows[0][3][1] = -127.0;
  rows[0][3][17] = 63.5;  // of the rotary keys: scale 0.5
  rows[0][3][24] = 1.5;   // key scale
  const at::Tensor page = packed_pages(rows, CacheFormat::int8, columns);
  const auto* bytes = page.data_ptr<uint8_t>();
  const auto half = [&bytes](int64_t at) {
    uint16_t bits;
    std::memcpy(&bits, bytes + at, 2);
    return bits;
  };
  EXPECT_EQ(page.size(2), 64 * 32 + 64 * 4 + 64 * 2);
  EXPECT_EQ(bytes[3 * 32 + 2], 127);
  EXPECT_EQ(bytes[3 * 32 + 1], static_cast<uint8_t>(-64));  // -63.5, half to even
  EXPECT_EQ(bytes[3 * 32 + 17], 127);
  EXPECT_EQ(half(2048 + 3 * 4), 0x4000);
  EXPECT_EQ(half(2048 + 3 * 4 + 2), 0x3f00);
  EXPECT_EQ(half(2048 + 256 + 3 * 2), 0x3fc0);

  rows.zero_();
  rows[0][7][4] = 15;
  rows[0][8][4] = 6;
  rows[0][8][5] = -30;
  const at::Tensor four = packed_pages(rows, CacheFormat::int4, columns);
  bytes = four.data_ptr<uint8_t>();
  EXPECT_EQ(four.size(2), 64 * 16 + 2 * 48 + 128);
  EXPECT_EQ(bytes[7 * 16 + 2], 0xff);  // column 4 in the low half; 0 is column 5's largest
  EXPECT_EQ(bytes[8 * 16 + 2], 0x06);
  EXPECT_EQ(half(1024 + 2 * 4), 0x3c00);
  EXPECT_EQ(half(1024 + 2 * 5), 0x4000);
  EXPECT_EQ(half(1024 + 48 + 2 * 5), 0xcf80);
}

TEST(CacheFormat, RefusesOtherShapes) {
  const CacheColumns columns{16, 8, 0};
  EXPECT_THROW(packed_pages(at::zeros({1, 64, 25}, at::kHalf), CacheFormat::int8, columns), ShapeError);
  EXPECT_THROW(packed_pages(at::zeros({1, 64, 24}), CacheFormat::int8, columns), ShapeError);
  EXPECT_THROW(as_cached(at::zeros({64, 24}), CacheFormat::fp8, columns), ShapeError);
  const at::Tensor page = packed_pages(at::zeros({1, 64, 24}, at::kHalf), CacheFormat::int8, columns);
  EXPECT_THROW(unpacked_rows(page, 65, CacheFormat::int8, columns, at::kHalf), ShapeError);
  EXPECT_THROW(unpacked_rows(page, 64, CacheFormat::int4, columns, at::kHalf), ShapeError);
}

}  // namespace
}  // namespace cinch
