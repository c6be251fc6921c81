// A device for tests of programs that move tensors between devices, on machines without any: PyTorch's private-use
// backend, computed by the CPU.
#pragma once

#include <c10/core/Device.h>

namespace cinch {

/// Tensors on it lie in host memory behind addresses that fault when they are followed, and every operation on them
/// throws c10::Error as CUDA's do where another tensor among its arguments lies elsewhere (numbers without dimensions
/// may, unless they are written). Slow, and not equal to the CPU bit for bit: some operations take other paths.
at::Device test_device();

}  // namespace cinch
