#include "attention/kernels/prefill/prefill_instances.cuh"

namespace cinch::prefill {

int launch_forward_fp16(const ForwardJob& job, void* stream) {
  return visit_forward<warp::Fp16>(job.tiling, LaunchForward{job, stream});
}

}  // namespace cinch::prefill
