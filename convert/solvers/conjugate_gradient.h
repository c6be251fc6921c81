// Preconditioned conjugate gradients on a symmetric positive semi-definite operator over matrices.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace cinch {

using MatrixOperator = std::function<at::Tensor(const at::Tensor&)>;

/// `steps` steps from zero towards X with apply(X) = b; stops early where the residual has vanished. The quadratic
/// <X, apply(X)>/2 - <X, b> falls with every step.
at::Tensor conjugate_gradient(const MatrixOperator& apply, const MatrixOperator& precondition, const at::Tensor& b,
                              int steps);

/// The same for the independent problems of a batch (n, .., ..), each with steps of its own.
at::Tensor batched_conjugate_gradient(const MatrixOperator& apply, const MatrixOperator& precondition,
                                      const at::Tensor& b, int steps);

}  // namespace cinch
