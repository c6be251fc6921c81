// What kernels on arrays of fp32, fp16 and bf16 numbers share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>

#include "core/cuda_abi.h"

namespace cinch {

/// Neighbouring numbers that one thread takes at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};

constexpr int kPackBytes = 16;

/// Whether arrays at these addresses, of rows of `count` numbers, can be read in packs.
template <typename T, typename... Pointers>
bool in_packs(int64_t count, const Pointers*... pointers) {
  const uintptr_t bits = (reinterpret_cast<uintptr_t>(pointers) | ...);
  return count % (kPackBytes / static_cast<int64_t>(sizeof(T))) == 0 && bits % kPackBytes == 0;
}

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(__half x) { return __half2float(x); }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

/// Calls launch(T()) with the type of that number (CinchElement), then asks CUDA how it went: 0, or -1 with the reason.
template <typename Launch>
int32_t launch_for(int32_t element, char* error, uint64_t error_size, const Launch& launch) {
  switch (element) {
    case kCinchF32:
      launch(float());
      break;
    case kCinchF16:
      launch(__half());
      break;
    case kCinchBF16:
      launch(__nv_bfloat16());
      break;
    default:
      snprintf(error, error_size, "unknown type %d", element);
      return -1;
  }
  const cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess) return 0;
  snprintf(error, error_size, "%s", cudaGetErrorString(status));
  return -1;
}

}  // namespace cinch
