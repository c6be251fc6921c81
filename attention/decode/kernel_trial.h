// One small step by the decode kernels on the device that they are to be used on, against double precision on the host:
// a kernel that computes wrong numbers there is not used.
#pragma once

#include <c10/core/Device.h>

#include <string>

#include "attention/kernels/decode/decode_functions.h"

namespace cinch {

/// Empty where the kernel of `shape` (decode_step_shape; its kernel is one, not any) is right on `device`, else what is
/// wrong. Two sequences of 70 and 5 tokens go into a cache of this shape in two appends, the last token by itself; then
/// they are decoded. Milliseconds, once per process for every device and shape.
std::string kernel_fault(const CinchDecodeStep& shape, c10::Device device, const DecodeFunctions& functions);

}  // namespace cinch
