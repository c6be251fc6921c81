#include "attention/cache_precision.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/errors.h"

namespace cinch {
namespace {

const std::vector<int> kBits = {8, 4, 3, 2};

/// One channel, (1, 1, S, 1).
at::Tensor channel(const std::vector<double>& values) {
  return at::tensor(values, at::kDouble).view({1, 1, static_cast<int64_t>(values.size()), 1});
}

std::vector<double> numbers(const at::Tensor& x) {
  const at::Tensor flat = x.to(at::kDouble).flatten().contiguous();
  return {flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel()};
}

double fp16(double x) { return static_cast<double>(static_cast<float>(c10::Half(static_cast<float>(x)))); }
double bf16(double x) { return static_cast<double>(static_cast<float>(c10::BFloat16(static_cast<float>(x)))); }

/// One group, number by number, and the bound that the header promises.
std::vector<double> by_hand(const std::vector<double>& group, int bits, double& bound) {
  const double levels = std::pow(2.0, bits) - 1;
  const double least = *std::min_element(group.begin(), group.end());
  const double most = *std::max_element(group.begin(), group.end());
  double zero = fp16(least), scale = fp16((most - least) / levels);
  if (std::isinf(zero) || std::isinf(scale)) zero = bf16(least), scale = bf16((most - least) / levels);
  bound = scale / 2 + std::max(std::abs(zero - least), std::abs(zero + levels * scale - most));
  std::vector<double> result;
  for (const double x : group) {
    const double n = scale > 0 ? std::clamp(std::nearbyint((x - zero) / scale), 0.0, levels) : 0;
    result.push_back(zero + scale * n);
  }
  return result;
}

TEST(CachePrecision, NamesAndForms) {
  EXPECT_EQ(CachePrecision{}.name(), "16 bit");
  EXPECT_EQ(parse_cache_precision("16"), CachePrecision{});
  EXPECT_FALSE(parse_cache_precision("16").rounds());
  for (const int bits : kBits) {
    const std::string name = fmt::format("int{}", bits);
    EXPECT_EQ(parse_cache_precision(name).bits, bits);
    EXPECT_EQ(parse_cache_precision(name).name(), name);
  }
  for (const char* served : {"int8-token", "fp8"}) {
    const CachePrecision precision = parse_cache_precision(served);
    EXPECT_EQ(precision.name(), served);
    EXPECT_TRUE(precision.rounds());
    const at::Tensor x = at::randn({1, 2, 3, 4});  // grouped-query attention keeps 16 bits
    EXPECT_TRUE(rounded_per_channel(x, precision).is_same(x));
    EXPECT_TRUE(rounded_per_token(x, precision).is_same(x));
  }
  for (const char* wrong : {"", "int5", "int", "8", "int16", "INT8", "int8 ", "fp8 ", "int4-token"}) {
    try {
      parse_cache_precision(wrong);
      FAIL() << wrong;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(fmt::format("\"{}\"", wrong)));
      EXPECT_THAT(describe_error(error).help, testing::HasSubstr("int8, int4, int3, int2, 16, int8-token, fp8"));
    }
  }
}

TEST(CachePrecision, CountsScalesAndZeros) {
  const CachePrecision four{.bits = 4};
  EXPECT_EQ(CachePrecision{}.bits_per_number(), 16);
  EXPECT_EQ(CachePrecision{}.bits_per_number(8), 16);
  EXPECT_EQ(four.bits_per_number(), 4.5);
  EXPECT_EQ(four.bits_per_number(128), 4.5);
  EXPECT_EQ(four.bits_per_number(8), 4 + 32.0 / 8);    // small heads pay more
  EXPECT_EQ(four.bits_per_number(96), 4 + 64.0 / 96);  // a group of 64 and one of 32
  EXPECT_EQ((CachePrecision{.bits = 2, .group = 32}.bits_per_number()), 3);
}

TEST(CachePrecision, PackedBytesOfBothKinds) {
  AttentionSpec grouped;
  grouped.n_kv_heads = 3;
  grouped.head_dim = 64;
  EXPECT_EQ(packed_bytes_per_token(grouped, {}), 2 * 3 * 64 * 2);
  EXPECT_EQ(packed_bytes_per_token(grouped, {.bits = 4}), 2 * 3 * 64 * 4.5 / 8);
  grouped.head_dim = 16;
  EXPECT_EQ(packed_bytes_per_token(grouped, {.bits = 8}), 3 * 16 * (8.5 + 10) / 8);  // values: 32 bits for each 16

  AttentionSpec latent;
  latent.kind = AttentionKind::latent;
  latent.n_kv_heads = 3;
  latent.kv_lora_rank = 40;
  latent.qk_rope_head_dim = 24;
  EXPECT_EQ(packed_bytes_per_token(latent, {}), 64 * 2);
  EXPECT_EQ(packed_bytes_per_token(latent, {.bits = 3}), 64 * 3.5 / 8);
  latent.key_scale_tail = true;
  EXPECT_EQ(packed_bytes_per_token(latent, {}), 64 * 2 + 3 * 2);
  EXPECT_EQ(packed_bytes_per_token(latent, {.bits = 3}), 64 * 3.5 / 8 + 3 * 2);
  for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8})
    EXPECT_EQ(packed_bytes_per_token(latent, {.served = format}), 64 + 2 * 2 + 3 * 2);
  EXPECT_EQ(packed_bytes_per_token(grouped, {.served = CacheFormat::fp8}), packed_bytes_per_token(grouped, {}));
}

TEST(CachePrecision, SixteenBitsTouchNothing) {
  const at::Tensor x = at::randn({1, 2, 3, 4});
  EXPECT_TRUE(rounded_per_channel(x, {}).is_same(x));
  EXPECT_TRUE(rounded_per_token(x, {}).is_same(x));
}

TEST(CachePrecision, KnownValues) {
  EXPECT_EQ(numbers(rounded_per_channel(channel({-1, 0.4, 0.6, 2}), {.bits = 2})), (std::vector<double>{-1, 0, 1, 2}));
  EXPECT_EQ(numbers(rounded_per_channel(channel({0, 15, 7.4, 7.6, 3}), {.bits = 4})),
            (std::vector<double>{0, 15, 7, 8, 3}));
  // A third in fp16 is 1365 / 4096.
  EXPECT_EQ(numbers(rounded_per_channel(channel({0, 0.3, 1}), {.bits = 2})),
            (std::vector<double>{0, 1365.0 / 4096, 3 * 1365.0 / 4096}));
  // Groups of two tokens; the last stays alone.
  EXPECT_EQ(numbers(rounded_per_channel(channel({0, 7, 10, 80, 5.5}), {.bits = 3, .group = 2})),
            (std::vector<double>{0, 7, 10, 80, 5.5}));
  EXPECT_EQ(numbers(rounded_per_token(at::tensor({0., 1.4, 3., 30., 44., 60.}).view({1, 1, 2, 3}), {.bits = 2})),
            (std::vector<double>{0, 1, 3, 30, 40, 60}));
}

TEST(CachePrecision, EveryGroupAsByHand) {
  at::manual_seed(11);
  const at::Tensor x = at::randn({2, 3, 131, 70}, at::kDouble) * at::rand({1, 3, 1, 70}, at::kDouble).mul(9).exp() +
                       at::randn({2, 1, 1, 70}, at::kDouble) * 5;
  for (const int bits : kBits) {
    for (const bool per_token : {false, true}) {
      const CachePrecision precision{.bits = bits};
      // (.., n): rows of numbers that are grouped along n.
      const auto rows_of = [&](const at::Tensor& t) {
        return (per_token ? t : t.transpose(2, 3)).flatten(0, 2).contiguous();
      };
      const at::Tensor rows = rows_of(x);
      const at::Tensor rounded =
          rows_of(per_token ? rounded_per_token(x, precision) : rounded_per_channel(x, precision));
      ASSERT_EQ(rows.sizes(), rounded.sizes());
      double worst = 0, over = 0;
      for (int64_t row = 0; row < rows.size(0); row += 7) {
        for (int64_t begin = 0; begin < rows.size(1); begin += 64) {
          const int64_t count = std::min<int64_t>(64, rows.size(1) - begin);
          const auto group = numbers(rows[row].narrow(0, begin, count));
          const auto found = numbers(rounded[row].narrow(0, begin, count));
          double bound = 0;
          const auto expected = by_hand(group, bits, bound);
          for (size_t i = 0; i < group.size(); ++i) {
            worst = std::max(worst, std::abs(found[i] - expected[i]) / (1 + std::abs(expected[i])));
            over = std::max(over, std::abs(found[i] - group[i]) / bound);
          }
        }
      }
      EXPECT_LT(worst, 1e-12) << bits << " bits, per " << (per_token ? "token" : "channel");
      EXPECT_LT(over, 1 + 1e-9);
    }
  }
}

TEST(CachePrecision, MoreBitsAreCloser) {
  at::manual_seed(12);
  const at::Tensor x = at::randn({1, 2, 200, 96});
  double before = 1e-4;  // far below what 8 bits can do
  for (const int bits : kBits) {
    const CachePrecision precision{.bits = bits};
    const double channels = (rounded_per_channel(x, precision) - x).square().mean().item<double>();
    const double tokens = (rounded_per_token(x, precision) - x).square().mean().item<double>();
    EXPECT_GT(channels, bits == 8 ? 1e-6 : 3 * before) << bits;
    EXPECT_NEAR(channels / tokens, 1, 0.2) << bits;  // of numbers that are alike in both directions
    before = channels;
  }
}

TEST(CachePrecision, ConstantGroupsAreTheirNumberInSixteenBits) {
  const double pi = 3.14159265358979;
  for (const int bits : kBits) {
    for (const double value : {0.0, 1.0, -0.25, pi, -1e-3, 60000.0}) {
      const at::Tensor x = at::full({1, 2, 70, 3}, value, at::kDouble);
      EXPECT_TRUE(at::equal(rounded_per_channel(x, {.bits = bits}), at::full_like(x, fp16(value)))) << value;
      EXPECT_TRUE(at::equal(rounded_per_token(x, {.bits = bits}), at::full_like(x, fp16(value)))) << value;
    }
  }
}

TEST(CachePrecision, NumbersBeyondFp16) {
  EXPECT_EQ(numbers(rounded_per_channel(channel({1e6, 1e6}), {.bits = 4})),
            (std::vector<double>{bf16(1e6), bf16(1e6)}));
  // Only the scale is beyond fp16.
  EXPECT_EQ(numbers(rounded_per_channel(channel({0, 3e5}), {.bits = 2})), (std::vector<double>{0, 3 * bf16(1e5)}));
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    at::Tensor sink = at::randn({1, 1, 128, 4}, type);
    sink.select(2, 0).fill_(-1e38);
    sink.select(2, 1).fill_(1e38);
    for (const int bits : kBits) {
      const at::Tensor rounded = rounded_per_channel(sink, {.bits = bits});
      EXPECT_EQ(rounded.scalar_type(), type);
      EXPECT_TRUE(rounded.isfinite().all().item<bool>());
      // The other group does not know of it.
      EXPECT_LT((rounded - sink).narrow(2, 64, 64).abs().max().item<double>(), 2);
    }
  }
}

TEST(CachePrecision, TinyRangesAndHalfTypesStayFinite) {
  at::manual_seed(13);
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const double size : {1e-30, 1e-9, 1e-7, 1e-5, 1.0, 1e4}) {
      const at::Tensor x = (at::randn({1, 2, 66, 5}, at::kDouble) * size).to(type);
      for (const int bits : kBits) {
        const at::Tensor rounded = rounded_per_channel(x, {.bits = bits});
        EXPECT_EQ(rounded.scalar_type(), type);
        EXPECT_TRUE(rounded.isfinite().all().item<bool>());
        // Near the ends of fp16's range of small numbers its own spacing, 6e-8, is the limit.
        const double bound = 8 * size / ((1 << bits) - 1) + 6e-8 * (1 << bits) + size * 0.03;
        EXPECT_LT((rounded - x).abs().max().item<double>(), bound) << size << " " << bits;
      }
    }
  }
  EXPECT_EQ(rounded_per_channel(at::zeros({1, 1, 4, 0}), {.bits = 4}).numel(), 0);
}

TEST(CachePrecision, SequencesHeadsAndGroupsAreIndependent) {
  at::manual_seed(14);
  const at::Tensor x = at::randn({2, 3, 130, 66}, at::kDouble) * 3;
  const CachePrecision precision{.bits = 3};
  const at::Tensor channels = rounded_per_channel(x, precision), tokens = rounded_per_token(x, precision);
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t k = 0; k < 3; ++k) {
      const auto part = [&](const at::Tensor& t) { return t.narrow(0, b, 1).narrow(1, k, 1); };
      EXPECT_TRUE(at::equal(rounded_per_channel(part(x), precision), part(channels)));
      EXPECT_TRUE(at::equal(rounded_per_token(part(x), precision), part(tokens)));
    }
  }
  for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 64}, {64, 64}, {128, 2}}) {
    EXPECT_TRUE(at::equal(rounded_per_channel(x.narrow(2, begin, count), precision), channels.narrow(2, begin, count)));
  }
  EXPECT_TRUE(at::equal(rounded_per_token(x.narrow(3, 64, 2), precision), tokens.narrow(3, 64, 2)));
  EXPECT_TRUE(at::equal(rounded_per_channel(x.narrow(3, 7, 5), precision), channels.narrow(3, 7, 5)));
}

}  // namespace
}  // namespace cinch
