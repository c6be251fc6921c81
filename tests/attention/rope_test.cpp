#include "attention/rope.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/errors.h"

namespace cinch {
namespace {

RopeSpec spec_of(const std::string& type, int64_t rotary_dim = 8) {
  RopeSpec spec;
  spec.type = type;
  spec.rotary_dim = rotary_dim;
  spec.max_position_embeddings = 64;
  return spec;
}

// The scalings are compared with transformers through the golden models of tests/model; here the rest.
TEST(Rope, RotatesPlanesOfHalfSplitHeads) {
  const Rope rope(spec_of("default"));
  at::manual_seed(1);
  const at::Tensor x = at::randn({2, 3, 5, 12}, at::kDouble);  // 8 of 12 dims are rotated
  const at::Tensor turned = Rope::apply(x, rope.table(7, 5, 12, at::kDouble, at::kCPU));
  for (int64_t t = 0; t < 5; ++t) {
    for (int64_t j = 0; j < 4; ++j) {
      const double angle = static_cast<double>(7 + t) * rope.inv_freq(0)[static_cast<size_t>(j)];
      const double a = x[1][2][t][j].item<double>(), b = x[1][2][t][j + 4].item<double>();
      EXPECT_NEAR(turned[1][2][t][j].item<double>(), a * std::cos(angle) - b * std::sin(angle), 1e-12);
      EXPECT_NEAR(turned[1][2][t][j + 4].item<double>(), b * std::cos(angle) + a * std::sin(angle), 1e-12);
    }
  }
  EXPECT_TRUE(at::equal(turned.narrow(-1, 8, 4), x.narrow(-1, 8, 4)));
}

TEST(Rope, ScoresDependOnDistanceOnly) {
  const Rope rope(spec_of("default", 48));
  at::manual_seed(2);
  const at::Tensor q = at::randn({1, 48}, at::kDouble), k = at::randn({1, 48}, at::kDouble);
  const auto score = [&](int64_t t, int64_t s) {
    return Rope::apply(q, rope.table(t, 1, 0, at::kDouble, at::kCPU))
        .mul(Rope::apply(k, rope.table(s, 1, 0, at::kDouble, at::kCPU)))
        .sum()
        .item<double>();
  };
  EXPECT_NEAR(score(9, 4), score(1005, 1000), 1e-10);
}

TEST(Rope, LengthChoosesFrequencies) {
  RopeSpec dynamic = spec_of("dynamic");
  dynamic.factor = 3;
  EXPECT_EQ(Rope(dynamic).inv_freq(64), Rope(spec_of("default")).inv_freq(64));
  EXPECT_LT(Rope(dynamic).inv_freq(65).back(), Rope(dynamic).inv_freq(64).back());
  RopeSpec longrope = spec_of("longrope");
  longrope.original_max_position_embeddings = 16;
  longrope.short_factor = {1, 1, 1, 1};
  longrope.long_factor = {2, 2, 2, 2};
  const Rope rope(longrope);
  EXPECT_EQ(rope.inv_freq(16)[1], 2 * rope.inv_freq(17)[1]);
}

TEST(Rope, RefusesImpossibleNumbers) {
  EXPECT_THROW(Rope(spec_of("ntk-by-parts")), UnsupportedError);
  EXPECT_THROW(Rope(spec_of("default", 7)), ConfigError);
  RopeSpec spec = spec_of("longrope");
  spec.short_factor = {1, 1, 1};
  spec.long_factor = {1, 1, 1, 1};
  EXPECT_THROW(Rope{spec}, ConfigError);
  spec = spec_of("llama3");
  EXPECT_THROW(Rope{spec}, ConfigError);  // without the original length
  spec = spec_of("linear");
  spec.factor = 0;
  EXPECT_THROW(Rope{spec}, ConfigError);
  spec = spec_of("default");
  spec.theta = -1;
  EXPECT_THROW(Rope{spec}, ConfigError);
}

}  // namespace
}  // namespace cinch
