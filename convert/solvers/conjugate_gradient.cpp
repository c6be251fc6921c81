#include "convert/solvers/conjugate_gradient.h"

#include <ATen/ATen.h>

namespace cinch {
namespace {

/// Sums over the matrices of a batch, (n, 1, 1).
at::Tensor dot_products(const at::Tensor& a, const at::Tensor& b) { return (a * b).sum({1, 2}, /*keepdim=*/true); }

/// a / b, and 0 where b is not positive: a problem that is solved stands still.
at::Tensor ratio(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor usable = b > 0;
  return at::where(usable, a / at::where(usable, b, at::ones_like(b)), at::zeros_like(a));
}

}  // namespace

at::Tensor batched_conjugate_gradient(const MatrixOperator& apply, const MatrixOperator& precondition,
                                      const at::Tensor& b, int steps) {
  at::Tensor x = at::zeros_like(b), residual = b, direction, before;
  for (int i = 0; i < steps; ++i) {
    const at::Tensor z = precondition(residual);
    const at::Tensor now = dot_products(residual, z);
    direction = direction.defined() ? z + ratio(now, before) * direction : z;
    const at::Tensor image = apply(direction);
    const at::Tensor length = ratio(now, dot_products(direction, image)).clamp_min(0);
    if (!length.any().item<bool>()) break;
    x = x + length * direction;
    residual = residual - length * image;
    before = now;
  }
  return x;
}

at::Tensor conjugate_gradient(const MatrixOperator& apply, const MatrixOperator& precondition, const at::Tensor& b,
                              int steps) {
  // A batch of one: whatever the shape of b, its problem is a single one.
  const auto single = [&](const MatrixOperator& op) {
    return [&](const at::Tensor& x) { return op(x.reshape(b.sizes())).reshape({1, 1, -1}); };
  };
  return batched_conjugate_gradient(single(apply), single(precondition), b.reshape({1, 1, -1}), steps)
      .reshape(b.sizes());
}

}  // namespace cinch
