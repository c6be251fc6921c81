// Generalised Procrustes alignment of the heads of one group to their mean (Jin et al. 2025, arXiv 2412.20677).
#pragma once

#include "convert/solvers/moments.h"

namespace cinch {

/// Orthogonal maps (g, n, n) that bring heads closest to their common mean, from E x_a x_b^T (g, n, g, n). Starts at
/// the first head.
at::Tensor align_orthogonal(const at::Tensor& moment);

/// Unit complex factors (g, P) that do the same plane by plane, from E k_a k_b^T (g, D, g, D) in internal coordinates.
at::Tensor align_phases(const at::Tensor& moment);

/// E x_a,f conj(x_b,f) per plane, complex (P, g, g), from E x_a x_b^T (g, D, g, D).
at::Tensor plane_moments(const at::Tensor& moment);

}  // namespace cinch
