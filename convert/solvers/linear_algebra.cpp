#include "convert/solvers/linear_algebra.h"

#include <ATen/ATen.h>

namespace cinch {

at::Tensor fp64(const at::Tensor& x) { return x.to(at::kCPU, at::kDouble); }

void accumulate(at::Tensor& sum, const at::Tensor& term) {
  if (!sum.defined()) sum = at::zeros(term.sizes(), term.options().dtype(at::kDouble));
  sum.add_(term);
}

at::Tensor batch_trace(const at::Tensor& a) { return a.diagonal(0, -2, -1).sum(-1); }

at::Tensor damped(const at::Tensor& a, double relative) {
  at::Tensor scale = batch_trace(a) * (relative / static_cast<double>(a.size(-1)));
  scale = at::where(scale > 0, scale, at::ones_like(scale));
  return a + scale.unsqueeze(-1).unsqueeze(-1) * at::eye(a.size(-1), a.options());
}

at::Tensor solve_symmetric(const at::Tensor& a, const at::Tensor& b) {
  const auto [factor, info] = at::linalg_cholesky_ex(a);
  if (!info.any().item<bool>()) return at::cholesky_solve(b, factor);
  return at::matmul(at::linalg_pinv(a, 1e-14, /*hermitian=*/true), b);
}

Eigen eigen_descending(const at::Tensor& a) {
  const auto [values, vectors] = at::linalg_eigh(a);
  return {values.flip(-1), vectors.flip(-1)};
}

RootPair root_pair(const at::Tensor& a, double cutoff) {
  if (a.size(-1) == 0) return {a, a};
  const auto [values, vectors] = at::linalg_eigh(a);
  const at::Tensor limit = values.amax(-1, /*keepdim=*/true).clamp_min(0) * cutoff;
  const at::Tensor kept = values > limit;
  const at::Tensor root = at::where(kept, values, at::zeros_like(values)).sqrt();
  const at::Tensor inverse = at::where(kept, values, at::ones_like(values)).rsqrt() * kept;
  const auto compose = [&v = vectors](const at::Tensor& diagonal) {
    return at::matmul(v * diagonal.unsqueeze(-2), v.transpose(-2, -1));
  };
  return {compose(root), compose(inverse)};
}

}  // namespace cinch
