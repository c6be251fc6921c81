// Root-mean-square normalisation over the last axis.
#pragma once

#include <ATen/core/Tensor.h>

namespace cinch {

/// x / rms(x) * (offset + weight), computed in fp32 for half types as transformers does: rounded before the weight
/// without an offset (Llama; on CUDA after it, where it is one kernel), after it with one (Gemma).
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, double offset = 0.0);

}  // namespace cinch
