#include "attention/kernels/decode/decode_instances.cuh"

namespace cinch::decode {

int launch_packed_bf16(const DecodeJob& job, bool cooperative, void* stream) {
  return visit_packed_kernel<Bf16>(job.tiling, LaunchKernel{job, cooperative, static_cast<cudaStream_t>(stream)});
}

}  // namespace cinch::decode
