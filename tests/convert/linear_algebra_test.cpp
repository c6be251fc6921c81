#include "convert/solvers/linear_algebra.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

at::Tensor matrix(std::vector<double> values, int64_t columns) {
  return at::tensor(values, at::kDouble).reshape({-1, columns});
}

at::Tensor random_spd(int64_t batch, int64_t n) {
  const at::Tensor a = at::randn({batch, n, n + 3}, at::kDouble);
  return at::bmm(a, a.transpose(1, 2));
}

TEST(LinearAlgebra, TheTraceOfEachMatrix) {
  const at::Tensor batch = at::stack({matrix({1, 2, 3, 4}, 2), matrix({-5, 7, 7, 5}, 2)});
  EXPECT_EQ(largest_difference(batch_trace(batch), at::tensor({5.0, 0.0}, at::kDouble)), 0);
}

TEST(LinearAlgebra, DampingIsRelativeToTheMeanDiagonal) {
  // Mean diagonal 3, so half of it is 1.5. A zero matrix gets the identity.
  const at::Tensor batch = at::stack({matrix({2, 1, 1, 4}, 2), at::zeros({2, 2}, at::kDouble)});
  const at::Tensor expected = at::stack({matrix({3.5, 1, 1, 5.5}, 2), at::eye(2, at::kDouble)});
  EXPECT_LT(largest_difference(damped(batch, 0.5), expected), 1e-15);
}

TEST(LinearAlgebra, SolvesEverySystemOfABatch) {
  at::manual_seed(1);
  const at::Tensor a = random_spd(3, 9), x = at::randn({3, 9, 4}, at::kDouble);
  EXPECT_LT(largest_difference(solve_symmetric(a, at::bmm(a, x)), x), 1e-10);
}

TEST(LinearAlgebra, ASingularSystemGivesTheShortestSolution) {
  // x + y = 2 twice: of all solutions (1, 1) is the shortest. The regular neighbour in the batch is solved as well.
  const at::Tensor a = at::stack({matrix({1, 1, 1, 1}, 2), matrix({2, 0, 0, 4}, 2)});
  const at::Tensor b = at::stack({matrix({2, 2}, 1), matrix({2, 8}, 1)});
  const at::Tensor expected = at::stack({matrix({1, 1}, 1), matrix({1, 2}, 1)});
  EXPECT_LT(largest_difference(solve_symmetric(a, b), expected), 1e-12);
}

TEST(LinearAlgebra, EigenvaluesDescendWithTheirVectors) {
  const Eigen diagonal = eigen_descending(at::diag(at::tensor({1.0, 3.0, 2.0}, at::kDouble)));
  EXPECT_LT(largest_difference(diagonal.values, at::tensor({3.0, 2.0, 1.0}, at::kDouble)), 1e-15);
  EXPECT_NEAR(std::abs(diagonal.vectors[1][0].item<double>()), 1, 1e-15);
  at::manual_seed(2);
  const at::Tensor a = random_spd(2, 9);
  const Eigen eigen = eigen_descending(a);
  EXPECT_LT(largest_difference(at::bmm(a, eigen.vectors), eigen.vectors * eigen.values.unsqueeze(1)), 1e-11);
}

TEST(LinearAlgebra, EigenvaluesOfAHermitianMatrix) {
  const at::Tensor re = matrix({2, 0, 0, 2}, 2), im = matrix({0, 1, -1, 0}, 2);
  const Eigen eigen = eigen_descending(at::complex(re, im));  // [[2, i], [-i, 2]]
  EXPECT_LT(largest_difference(eigen.values, at::tensor({3.0, 1.0}, at::kDouble)), 1e-14);
}

TEST(LinearAlgebra, RootsOfFullAndOfDeficientMatrices) {
  at::manual_seed(3);
  const at::Tensor full = random_spd(1, 9)[0];
  const at::Tensor low = at::randn({9, 4}, at::kDouble);
  const at::Tensor deficient = at::matmul(low, low.t());
  const RootPair pair = root_pair(at::stack({full, deficient}));
  EXPECT_LT(largest_difference(at::matmul(pair.root[0], pair.root[0]), full), 1e-11);
  EXPECT_LT(largest_difference(at::matmul(pair.root[0], pair.inverse[0]), at::eye(9, at::kDouble)), 1e-11);
  EXPECT_LT(largest_difference(at::matmul(pair.root[1], pair.root[1]), deficient), 1e-11);
  // On what it spans the inverse inverts: the projector onto the columns of `low`.
  const at::Tensor q = std::get<0>(at::linalg_qr(low));
  EXPECT_LT(largest_difference(at::matmul(pair.root[1], pair.inverse[1]), at::matmul(q, q.t())), 1e-10);
}

TEST(LinearAlgebra, RootsIgnoreWhatIsNegligible) {
  const RootPair pair = root_pair(at::diag(at::tensor({4.0, 1e-9, -1.0}, at::kDouble)), 1e-6);
  EXPECT_LT(largest_difference(pair.root, at::diag(at::tensor({2.0, 0.0, 0.0}, at::kDouble))), 1e-15);
  EXPECT_LT(largest_difference(pair.inverse, at::diag(at::tensor({0.5, 0.0, 0.0}, at::kDouble))), 1e-15);
  const RootPair nothing = root_pair(at::zeros({3, 3}, at::kDouble));
  EXPECT_EQ(nothing.root.abs().max().item<double>(), 0);
  EXPECT_EQ(nothing.inverse.abs().max().item<double>(), 0);
}

}  // namespace
}  // namespace cinch
