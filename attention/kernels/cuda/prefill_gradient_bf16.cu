#include "attention/kernels/prefill/prefill_instances.cuh"

namespace cinch::prefill {

int launch_gradient_bf16(const GradientJob& job, void* stream) {
  return visit_gradient<warp::Bf16>(job.tiling, LaunchGradient{job, stream});
}

}  // namespace cinch::prefill
