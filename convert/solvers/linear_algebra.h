// Small dense linear algebra of the solvers, fp64 on the CPU, batched over leading dims.
#pragma once

#include <ATen/core/Tensor.h>

namespace cinch {

/// Solvers compute in fp64 on the CPU, streams in their own dtype on their device; from there to here is this one step.
at::Tensor fp64(const at::Tensor& x);
/// Adds to a sum over windows: in fp64, on the device of its terms, which it leaves (by fp64) when it is complete. An
/// undefined sum is zero.
void accumulate(at::Tensor& sum, const at::Tensor& term);

/// a + relative * (mean diagonal of a) * I. A zero matrix gets I, so that it stays solvable.
at::Tensor damped(const at::Tensor& a, double relative);

/// X with a X = b for symmetric positive definite a (..., n, n), b (..., n, m). Falls back to the pseudo-inverse where
/// the Cholesky factorisation fails.
at::Tensor solve_symmetric(const at::Tensor& a, const at::Tensor& b);

struct Eigen {
  at::Tensor values;   // (..., n) descending
  at::Tensor vectors;  // (..., n, n), columns
};
/// Of a symmetric or Hermitian matrix.
Eigen eigen_descending(const at::Tensor& a);

/// Square root and pseudo-inverse square root of a symmetric positive semi-definite matrix (..., n, n). Eigenvalues
/// below `cutoff` times the largest count as zero in both.
struct RootPair {
  at::Tensor root, inverse;  // (..., n, n)
};
RootPair root_pair(const at::Tensor& a, double cutoff = 1e-13);

at::Tensor batch_trace(const at::Tensor& a);  // (..., n, n) -> (...)

}  // namespace cinch
