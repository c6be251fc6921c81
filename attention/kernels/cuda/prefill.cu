// The C border of the prefill kernels, and the states of rows that the backward begins with.
#include <cuda_runtime.h>

#include "attention/kernels/cuda/border.h"
#include "attention/kernels/prefill/prefill_launch.h"
#include "attention/kernels/prefill/row_state.h"

namespace cinch::prefill {
namespace {

template <class T>
__global__ void __launch_bounds__(kRowStateThreads)
    prefill_row_states_kernel(const __grid_constant__ CinchPrefill work) {
  write_row_states<T>(work, blockIdx.x, static_cast<int>(threadIdx.x));
}

int launch_row_states(const CinchPrefill& work, void* stream) {
  const int64_t blocks = row_state_blocks(work);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const auto kernel =
      work.type == CINCH_PREFILL_BF16 ? &prefill_row_states_kernel<warp::Bf16> : &prefill_row_states_kernel<warp::Fp16>;
  kernel<<<static_cast<unsigned>(blocks), kRowStateThreads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  return cudaGetLastError();
}

}  // namespace
}  // namespace cinch::prefill

using namespace cinch::prefill;

extern "C" int32_t cinch_prefill_forward(const CinchPrefill* work, void* stream, char* error, uint64_t error_size) {
  Multiprocessor processor{};
  ForwardJob job{*work, {}};
  if (!check_prefill(*work, false, error, error_size)) return -1;
  const int status = cinch::border::current_multiprocessor(processor);
  if (status != cudaSuccess) return cinch::border::report(status, error, error_size);
  if (!choose_forward_tiling(*work, processor, job.tiling, error, error_size)) return -1;
  const auto launch = work->type == CINCH_PREFILL_BF16 ? &launch_forward_bf16 : &launch_forward_fp16;
  return cinch::border::report(launch(job, stream), error, error_size);
}

extern "C" int32_t cinch_prefill_backward(const CinchPrefill* work, void* stream, char* error, uint64_t error_size) {
  Multiprocessor processor{};
  GradientPasses passes{};
  if (!check_prefill(*work, true, error, error_size)) return -1;
  int status = cinch::border::current_multiprocessor(processor);
  if (status != cudaSuccess) return cinch::border::report(status, error, error_size);
  if (!choose_gradient_passes(*work, processor, passes, error, error_size)) return -1;
  status = launch_row_states(*work, stream);
  const auto launch = work->type == CINCH_PREFILL_BF16 ? &launch_gradient_bf16 : &launch_gradient_fp16;
  for (int i = 0; i < passes.count && status == cudaSuccess; ++i) status = launch({*work, passes.tilings[i]}, stream);
  return cinch::border::report(status, error, error_size);
}
