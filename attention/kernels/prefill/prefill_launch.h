// Launches of the compiled prefill kernels; behind the C border. All return a cudaError_t as int, 0: done.
#pragma once

#include "attention/kernels/prefill/prefill_tiling.h"

namespace cinch::prefill {

int launch_forward_bf16(const ForwardJob& job, void* stream);
int launch_forward_fp16(const ForwardJob& job, void* stream);
int launch_gradient_bf16(const GradientJob& job, void* stream);
int launch_gradient_fp16(const GradientJob& job, void* stream);

}  // namespace cinch::prefill
