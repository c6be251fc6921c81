// silu(gate) * up as one operation of the CUDA plug-in, which keeps its two inputs for the backward pass and nothing
// else.
#pragma once

#include <ATen/core/Tensor.h>

namespace cinch {

/// On CUDA, for all types but fp64, with the plug-in there.
bool has_fused_gate(const at::Tensor& gate);

/// gate and up of one shape and type; recorded where they ask for gradients. Not changed in place.
at::Tensor fused_gate(const at::Tensor& gate, const at::Tensor& up);

}  // namespace cinch
