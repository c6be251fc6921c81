#include "convert/solvers/procrustes.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

at::Tensor random_orthogonal(int64_t n) { return std::get<0>(at::linalg_qr(at::randn({n, n}, at::kDouble))); }

/// What alignment lowers: the power of the aligned heads around their mean.
double spread(const at::Tensor& maps, const at::Tensor& samples, int64_t heads) {
  const int64_t d = samples.size(1) / heads;
  const at::Tensor x = samples.reshape({-1, heads, d});
  const at::Tensor aligned = at::einsum("aij,naj->nai", {maps, x});
  return (aligned - aligned.mean(1, true)).square().sum().item<double>() / static_cast<double>(samples.size(0));
}

TEST(Procrustes, MomentsOfPlanes) {
  at::manual_seed(1);
  const at::Tensor samples = at::randn({50, 3 * 6}, at::kDouble);
  const at::Tensor x = samples.reshape({50, 3, 2, 3});  // (N, head, re/im, plane)
  const at::Tensor z = at::complex(x.select(2, 0).contiguous(), x.select(2, 1).contiguous());
  const at::Tensor expected = at::einsum("naf,nbf->fab", {z, z.conj()}) / 50;
  EXPECT_LT(largest_difference(plane_moments(joint_moment(samples, 3)), expected), 1e-13);
}

TEST(Procrustes, OrthogonalCopiesFallTogether) {
  at::manual_seed(2);
  const at::Tensor first = at::randn({200, 48}, at::kDouble);
  std::vector<at::Tensor> copies{first}, turns{at::eye(48, at::kDouble)};
  for (int a = 1; a < 3; ++a) {
    turns.push_back(random_orthogonal(48));
    copies.push_back(at::matmul(first, turns.back().t()));  // x_a = Q_a x_0
  }
  const at::Tensor samples = at::cat(copies, 1), maps = align_orthogonal(joint_moment(samples, 3));
  EXPECT_LT(spread(maps, samples, 3), 1e-18);
  // Starting at the first head leaves it where it is, and the others are turned back.
  for (int a = 0; a < 3; ++a) EXPECT_LT(largest_difference(maps[a], turns[static_cast<size_t>(a)].t()), 1e-10) << a;
}

TEST(Procrustes, NoOtherTurnAlignsBetter) {
  at::manual_seed(3);
  const at::Tensor common = at::randn({300, 6}, at::kDouble);
  std::vector<at::Tensor> heads;
  for (int a = 0; a < 4; ++a) {
    heads.push_back(at::matmul(common, random_orthogonal(6)) + 0.5 * at::randn({300, 6}, at::kDouble));
  }
  const at::Tensor samples = at::cat(heads, 1), maps = align_orthogonal(joint_moment(samples, 4));
  const at::Tensor identity = at::eye(6, at::kDouble);
  EXPECT_LT(largest_difference(at::bmm(maps, maps.transpose(1, 2)), identity.expand({4, 6, 6})), 1e-12);
  const double best = spread(maps, samples, 4);
  EXPECT_LT(best, spread(identity.expand({4, 6, 6}), samples, 4));
  for (int i = 0; i < 10; ++i) {
    const at::Tensor noise = 0.05 * at::randn({4, 6, 6}, at::kDouble);
    const at::Tensor turn = at::linalg_matrix_exp(noise - noise.transpose(1, 2));
    EXPECT_GT(spread(at::bmm(turn, maps), samples, 4), best);
  }
}

TEST(Procrustes, PlantedPhasesAreFound) {
  at::manual_seed(4);
  const at::Tensor first = at::randn({40, 6}, at::kDouble);
  const at::Tensor angle = at::randn({3, 3}, at::kDouble);  // (heads, planes)
  angle[0].zero_();
  const at::Tensor turns = plane_map(at::complex(angle.cos(), angle.sin()));
  const at::Tensor samples = at::einsum("aij,nj->nai", {turns, first}).flatten(1, 2);
  const at::Tensor factors = align_phases(joint_moment(samples, 3));
  EXPECT_LT(largest_difference(factors.abs(), at::ones({3, 3}, at::kDouble)), 1e-12);
  EXPECT_LT(largest_difference(factors, at::complex(angle.cos(), -angle.sin())), 1e-10);
  EXPECT_LT(spread(plane_map(factors), samples, 3), 1e-20);
}

TEST(Procrustes, AHeadWithoutEnergyKeepsAUsableMap) {
  const at::Tensor samples = at::cat({at::ones({5, 4}, at::kDouble), at::zeros({5, 4}, at::kDouble)}, 1);
  const at::Tensor moment = joint_moment(samples, 2);
  EXPECT_LT(largest_difference(align_phases(moment).abs(), at::ones({2, 2}, at::kDouble)), 1e-12);
  const at::Tensor maps = align_orthogonal(moment);
  EXPECT_LT(largest_difference(at::bmm(maps, maps.transpose(1, 2)), at::eye(4, at::kDouble).expand({2, 4, 4})), 1e-12);
}

}  // namespace
}  // namespace cinch
