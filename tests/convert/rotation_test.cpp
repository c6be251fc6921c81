#include "convert/solvers/rotation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "attention/rope.h"
#include "core/errors.h"
#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

/// Rotation by `lag` positions as a matrix, from the frequencies alone.
at::Tensor rotation_matrix(const HeadPlanes& planes, int64_t lag) {
  at::Tensor r = at::zeros({planes.head_dim, planes.head_dim}, at::kDouble);
  for (int64_t f = 0; f < planes.planes; ++f) {
    const double angle = static_cast<double>(lag) * planes.frequency[f].item<double>();
    r[f][f] = r[f + planes.planes][f + planes.planes] = std::cos(angle);
    r[f][f + planes.planes] = -std::sin(angle);
    r[f + planes.planes][f] = std::sin(angle);
  }
  return r;
}

std::vector<int64_t> values(const at::Tensor& t) { return {t.data_ptr<int64_t>(), t.data_ptr<int64_t>() + t.numel()}; }

AttentionSpec yarn() {
  AttentionSpec spec;
  spec.head_dim = 48;
  spec.rope.rotary_dim = 32;
  spec.rope.type = "yarn";
  spec.rope.factor = 4;
  spec.rope.original_max_position_embeddings = 16;
  spec.rope.max_position_embeddings = 64;
  return spec;
}

TEST(Rotation, RotatedPlanesComeFirst) {
  const HeadPlanes planes = planes_of(8, 4);
  EXPECT_EQ(planes.planes, 4);
  EXPECT_EQ(planes.rotated, 2);
  // Planes (0, 2) and (1, 3) rotate; the others are paired as they come.
  EXPECT_EQ(values(planes.order), (std::vector<int64_t>{0, 1, 4, 6, 2, 3, 5, 7}));
  // Frequencies are those of fp32, as transformers works them out.
  const double hundredth = static_cast<double>(0.01f);
  EXPECT_LT(largest_difference(planes.frequency, at::tensor({1.0, hundredth, 0.0, 0.0}, at::kDouble)), 1e-15);
  EXPECT_EQ(values(unrotated_dims(planes)), (std::vector<int64_t>{2, 3, 6, 7}));
  EXPECT_EQ(unrotated_dims(planes_of(6, 6)).numel(), 0);
  EXPECT_EQ(values(unrotated_dims(planes_of(4, 0))), (std::vector<int64_t>{0, 1, 2, 3}));
}

TEST(Rotation, AnOddHeadIsRefused) {
  EXPECT_THROW(planes_of(3, 0), UnsupportedError);
  EXPECT_THROW(planes_of(27, 26), UnsupportedError);
}

TEST(Rotation, InternalCoordinatesRotateLikeRope) {
  at::manual_seed(1);
  for (const int64_t rotary : {0, 2, 6}) {
    AttentionSpec spec;
    spec.head_dim = 6;
    spec.rope.rotary_dim = rotary;
    const HeadPlanes planes = head_planes(spec, 9);
    const at::Tensor x = at::randn({9, 6}, at::kDouble);  // (T, D)
    at::Tensor expected = x;
    if (rotary > 0) expected = Rope::apply(x, Rope(spec.rope).table(2, 9, 11, at::kDouble, at::kCPU));
    const RotationTable table = rotation_table(planes, 2, 9, at::kDouble);
    const at::Tensor turned = rotate(x.index_select(1, planes.order), table);
    EXPECT_LT(largest_difference(turned, expected.index_select(1, planes.order)), 1e-12) << rotary;
    EXPECT_LT(largest_difference(rotate(turned, table, /*inverse=*/true), x.index_select(1, planes.order)), 1e-14);
  }
}

TEST(Rotation, TheFactorOfYarnIsFoldedIntoQueriesAndKeys) {
  at::manual_seed(2);
  const AttentionSpec spec = yarn();
  const HeadPlanes planes = head_planes(spec, 40);
  const double factor = Rope(spec.rope).attention_scaling();
  ASSERT_GT(factor, 1.0);
  const at::Tensor projection = at::randn({2 * 48, 5}, at::kDouble);
  const at::Tensor with = to_internal(planes, projection, true), without = to_internal(planes, projection, false);
  // 16 rotated planes are scaled, the 8 others are not.
  EXPECT_LT(largest_difference(with.slice(1, 0, 16), without.slice(1, 0, 16) * factor), 1e-14);
  EXPECT_LT(largest_difference(with.slice(1, 16, 24), without.slice(1, 16, 24)), 1e-15);
  EXPECT_LT(largest_difference(with.slice(1, 24, 40), without.slice(1, 24, 40) * factor), 1e-14);
  EXPECT_LT(largest_difference(from_internal(planes, with, true), projection), 1e-14);
  EXPECT_EQ(largest_difference(from_internal(planes, without, false), projection), 0);
}

TEST(Rotation, APlaneMapMultipliesComplexNumbers) {
  const auto complex = [](std::vector<double> re, std::vector<double> im) {
    return at::complex(at::tensor(re, at::kDouble), at::tensor(im, at::kDouble));
  };
  const at::Tensor map = plane_map(complex({0.0, 2.0}, {1.0, 3.0}));    // i and 2 + 3i
  const at::Tensor x = at::tensor({5.0, 1.0, 7.0, -1.0}, at::kDouble);  // 5 + 7i and 1 - i
  EXPECT_LT(largest_difference(at::matmul(map, x), at::tensor({-7.0, 5.0, 5.0, 1.0}, at::kDouble)), 1e-14);
}

TEST(Rotation, SelectedPositions) {
  const RotationTable table = rotation_table(planes_of(6, 6), 3, 5, at::kDouble);
  const RotationTable some = select_positions(table, at::tensor({4, 1}, at::kLong));
  EXPECT_EQ(some.cos.size(0), 2);
  EXPECT_EQ(largest_difference(some.cos[0], table.cos[4]), 0);
  EXPECT_EQ(largest_difference(some.sin[1], table.sin[1]), 0);
}

TEST(Rotation, AveragesOverLagsEqualTheirSums) {
  at::manual_seed(3);
  for (const auto& [head_dim, rotary] : {std::pair<int64_t, int64_t>{6, 6}, {6, 4}, {48, 32}}) {
    const HeadPlanes planes = planes_of(head_dim, rotary);
    const at::Tensor weights = at::softmax(at::randn({7}, at::kDouble), 0);
    const LagFactors factors = lag_factors(planes, weights);
    const at::Tensor m = at::randn({2, head_dim, head_dim}, at::kDouble);
    at::Tensor forth = at::zeros_like(m), back = at::zeros_like(m);
    for (int64_t lag = 0; lag < 7; ++lag) {
      const at::Tensor r = rotation_matrix(planes, lag);
      forth += weights[lag] * at::matmul(at::matmul(r, m), r.t());
      back += weights[lag] * at::matmul(at::matmul(r.t(), m), r);
    }
    EXPECT_LT(largest_difference(rotation_average(m, factors), forth), 1e-12) << head_dim;
    EXPECT_LT(largest_difference(rotation_average_transposed(m, factors), back), 1e-12) << head_dim;
  }
}

}  // namespace
}  // namespace cinch
