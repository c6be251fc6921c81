#include "attention/kernels/prefill/prefill_instances.cuh"

namespace cinch::prefill {

int launch_gradient_fp16(const GradientJob& job, void* stream) {
  return visit_gradient<warp::Fp16>(job.tiling, LaunchGradient{job, stream});
}

}  // namespace cinch::prefill
