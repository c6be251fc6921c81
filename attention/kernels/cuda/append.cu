// The cache append's C border (attention/kernels/decode/append_abi.h).
#include <cuda_runtime.h>

#include "attention/kernels/cuda/border.h"
#include "attention/kernels/decode/append_block.h"

namespace cinch::decode {
namespace {

template <class T, int kPages>
__global__ void __launch_bounds__(kAppendThreads) append_kernel(const __grid_constant__ AppendJob job) {
  append_block<T, kPages>(job, static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x));
}

struct LaunchAppend {
  const AppendJob& job;
  cudaStream_t stream;

  template <class T, int kPages>
  cudaError_t visit() const {
    append_kernel<T, kPages>
        <<<static_cast<unsigned>(job.blocks), kAppendThreads, static_cast<size_t>(job.shared_bytes), stream>>>(job);
    return cudaGetLastError();
  }
};

}  // namespace
}  // namespace cinch::decode

extern "C" int32_t cinch_cache_append(const CinchCacheAppend* append, void* stream, char* error, uint64_t error_size) {
  using namespace cinch::decode;
  AppendJob job{};
  if (!make_append_job(*append, job, error, error_size)) return -1;
  return cinch::border::report(visit_append(*append, LaunchAppend{job, static_cast<cudaStream_t>(stream)}), error,
                               error_size);
}
