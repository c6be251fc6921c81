// For suites that run on the test device and, in instances named Cuda*, on CUDA.
#pragma once

#include <c10/core/DeviceType.h>

#include <string>

#include "tests/support/cuda_device.h"
#include "tests/support/device/test_device.h"

namespace cinch {

/// Empty where tests can run on a device of this type, else why they cannot and are skipped.
inline std::string missing_device(at::DeviceType type) { return type == at::kCUDA ? missing_cuda() : ""; }
/// CUDA's, or the test device.
inline at::Device device_under_test(at::DeviceType type) {
  return type == at::kCUDA ? at::Device(at::kCUDA) : test_device();
}

}  // namespace cinch
