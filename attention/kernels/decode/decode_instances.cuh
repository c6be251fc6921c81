// The kernels of one type, for the .cu file that compiles them.
#pragma once

#include <cuda_runtime.h>

#include "attention/kernels/decode/decode_kernel.h"
#include "attention/kernels/decode/decode_launch.h"

namespace cinch::decode {

/// Lets all thread blocks of the grid wait for each other; they must be resident at once. The word's top bit turns over
/// with every use, so that it needs no reset and grids of any size can take turns. Made at the kernel's begin, so that
/// reading the bit costs no time later.
class GridJoin {
 public:
  __device__ __forceinline__ explicit GridJoin(unsigned* word)
      : word_(word), before_(*static_cast<volatile unsigned*>(word)) {}
  __device__ __forceinline__ void operator()() {
    __syncthreads();
    if (threadIdx.x == 0) {
      const unsigned blocks = gridDim.x * gridDim.y;
      const unsigned step = blockIdx.x + blockIdx.y == 0 ? 0x80000000u - (blocks - 1) : 1;
      asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word_), "r"(step) : "memory");
      unsigned now = before_;
      while (((before_ ^ now) & 0x80000000u) == 0)
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word_) : "memory");
    }
    before_ ^= 0x80000000u;
    __syncthreads();
  }

 private:
  unsigned* word_;
  unsigned before_;
};

template <class T, int kRowTiles, int kUnits, int kColumnWarps, bool kPacked>
__global__ void __maxnreg__(register_budget(kRowTiles, kUnits, kColumnWarps))
    decode_kernel(const __grid_constant__ DecodeJob job) {
  const GridPlace place{static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), static_cast<int>(blockIdx.y),
                        static_cast<int>(gridDim.y), static_cast<int>(threadIdx.x)};
  decode<T, kRowTiles, kUnits, kColumnWarps, kPacked>(job, place, GridJoin(static_cast<unsigned*>(job.step.scratch)));
}

struct LaunchKernel {
  const DecodeJob& job;
  bool cooperative;
  cudaStream_t stream;

  template <class T, int kRowTiles, int kUnits, int kColumnWarps, bool kPacked>
  cudaError_t visit() const {
    const Tiling& t = job.tiling;
    const auto kernel = &decode_kernel<T, kRowTiles, kUnits, kColumnWarps, kPacked>;
    cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, t.shared_bytes);
    if (status == cudaSuccess) {
      status =
          cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    }
    if (status != cudaSuccess) return status;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = cooperative ? 1 : 0;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(t.parts, t.cache_heads * t.row_blocks * t.column_blocks);
    config.blockDim = dim3(32 * t.warps * t.row_groups);
    config.dynamicSmemBytes = t.shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, job);
  }
};

}  // namespace cinch::decode
