#include "attention/kernels/prefill/prefill_instances.cuh"

namespace cinch::prefill {

int launch_forward_bf16(const ForwardJob& job, void* stream) {
  return visit_forward<warp::Bf16>(job.tiling, LaunchForward{job, stream});
}

}  // namespace cinch::prefill
