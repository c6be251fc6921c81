// What every .cu file behind a C border needs: the device that it launches on, and how a launch's status leaves.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>

#include "attention/kernels/warp/device.h"

namespace cinch::border {

/// Of the current device. Returns a cudaError_t as int, 0: done.
inline int current_multiprocessor(warp::Multiprocessor& processor) {
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, device);
  };
  read(processor.count, cudaDevAttrMultiProcessorCount);
  read(processor.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  read(processor.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return status;
}

/// 0, or -1 with the cudaError_t `status` in words.
inline int32_t report(int status, char* error, uint64_t error_size) {
  if (status == cudaSuccess) return 0;
  snprintf(error, error_size, "%s", cudaGetErrorString(static_cast<cudaError_t>(status)));
  return -1;
}

}  // namespace cinch::border
