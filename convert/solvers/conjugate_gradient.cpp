#include "convert/solvers/conjugate_gradient.h"

#include <ATen/ATen.h>

namespace cinch {
namespace {

double dot_product(const at::Tensor& a, const at::Tensor& b) { return (a * b).sum().item<double>(); }

}  // namespace

at::Tensor conjugate_gradient(const MatrixOperator& apply, const MatrixOperator& precondition, const at::Tensor& b,
                              int steps) {
  at::Tensor x = at::zeros_like(b), residual = b.clone(), direction;
  double before = 0;
  for (int i = 0; i < steps; ++i) {
    const at::Tensor z = precondition(residual);
    const double now = dot_product(residual, z);
    if (!(now > 0)) break;
    direction = direction.defined() ? z + (now / before) * direction : z;
    const at::Tensor image = apply(direction);
    const double curvature = dot_product(direction, image);
    if (!(curvature > 0)) break;
    x = x + (now / curvature) * direction;
    residual = residual - (now / curvature) * image;
    before = now;
  }
  return x;
}

}  // namespace cinch
