// The kernels of one type, for the .cu files that compile them.
#pragma once

#include <cuda_runtime.h>

#include "attention/kernels/prefill/prefill_kernels.h"
#include "attention/kernels/prefill/prefill_launch.h"

namespace cinch::prefill {

template <class T, int kRowTiles, int kUnits>
__global__ void __launch_bounds__(forward_threads(kRowTiles))
    prefill_forward_kernel(const __grid_constant__ ForwardJob job) {
  ForwardBlock<T, kRowTiles, kUnits>(job, static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x)).run();
}

template <class T, int kPass, int kUnits>
__global__ void __launch_bounds__(gradient_threads(kUnits))
    prefill_gradient_kernel(const __grid_constant__ GradientJob job) {
  GradientBlock<T, kPass, kUnits>(job, static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x)).run();
}

template <class Job>
cudaError_t launch_grid(void (*kernel)(Job), const Job& job, int blocks, void* stream) {
  const auto& t = job.tiling;
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, t.shared_bytes);
  if (status == cudaSuccess)
    status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (status != cudaSuccess) return status;
  const int64_t grid = grid_of(job.work, blocks);
  if (grid > INT32_MAX) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(grid), 32 * t.warps, t.shared_bytes, static_cast<cudaStream_t>(stream)>>>(job);
  return cudaGetLastError();
}

struct LaunchForward {
  const ForwardJob& job;
  void* stream;

  template <class T, int kRowTiles, int kUnits>
  cudaError_t visit() const {
    return launch_grid(&prefill_forward_kernel<T, kRowTiles, kUnits>, job, job.tiling.row_blocks, stream);
  }
};

struct LaunchGradient {
  const GradientJob& job;
  void* stream;

  template <class T, int kPass, int kUnits>
  cudaError_t visit() const {
    return launch_grid(&prefill_gradient_kernel<T, kPass, kUnits>, job, job.tiling.own_blocks, stream);
  }
};

}  // namespace cinch::prefill
