// Which shapes cuDNN has kernels for, without asking it: its documented limits, and what its own checks accept. The
// test beside builds plans for both sides of every rule, for devices that need not be there.
#pragma once

#include <cstdint>
#include <string>

#include "attention/kernels/cudnn/cudnn_abi.h"

namespace cinch {

/// Empty when there is a kernel for the pass on devices of the compute capability (90 for 9.0), else what is missing.
/// Source: "Attention" in NVIDIA's cuDNN documentation, release 9.19.
std::string missing_in_cudnn(const CinchCudnnShape& shape, int32_t compute_capability);

/// No plan of the shape takes more bytes of workspace. Grows with T*S only where backward is deterministic.
uint64_t cudnn_workspace_bound(const CinchCudnnShape& shape);

}  // namespace cinch
