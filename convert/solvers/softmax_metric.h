// The metric that logit errors are measured in: to second order the divergence between softmax(l) and softmax(l + e) is
// half the p-weighted variance of e.
#pragma once

#include <ATen/core/Tensor.h>

namespace cinch {

/// Half the gradient of sum_n weight_n e_n^2 - (sum_n mean_n e_n)^2 for every row of `error` (..., T), written over it:
/// weight e - mean <mean, e>. Shapes are equal; on the CPU in one pass over contiguous rows, for this is where a fit
/// spends its time.
at::Tensor softmax_gradient_(at::Tensor error, const at::Tensor& weight, const at::Tensor& mean);

}  // namespace cinch
