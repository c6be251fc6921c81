// The decode kernels' C border (attention/kernels/decode/decode_abi.h).
#include <cuda_runtime.h>
#include <stdio.h>

#include "attention/kernels/cuda/border.h"
#include "attention/kernels/cuda/latent_sm90.h"
#include "attention/kernels/decode/decode_launch.h"
#include "attention/kernels/decode/plan_block.h"

namespace cinch::decode {
namespace {

__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(int32_t* memory, int32_t parts, const int32_t* lengths, int32_t batch, int32_t window) {
  make_plan(SplitPlan::at(memory, parts, batch), lengths, window, static_cast<int>(threadIdx.x));
}

/// Which kernel, and its tiling.
struct Choice {
  Tiling tiling;
  CinchDecodeKernel kernel;
};

int32_t choose(const CinchDecodeStep& step, Choice& choice, char* error, uint64_t error_size) {
  Multiprocessor processor{};
  int device = 0, major = 0, minor = 0;
  int status = border::current_multiprocessor(processor);
  if (status == cudaSuccess) status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (status != cudaSuccess) return border::report(status, error, error_size);
  const char* const missing = sm90_missing(step, major, minor);
  if (step.kernel == CINCH_DECODE_SM90 && missing != nullptr) {
    snprintf(error, error_size, "the sm_90 kernel does not cover this step: %s", missing);
    return -1;
  }
  const bool sm90 = step.kernel != CINCH_DECODE_MMA && missing == nullptr;
  choice.kernel = sm90 ? CINCH_DECODE_SM90 : CINCH_DECODE_MMA;
  return (sm90 ? choose_sm90_tiling(step, processor, choice.tiling, error, error_size)
               : choose_tiling(step, processor, {}, choice.tiling, error, error_size))
             ? 0
             : -1;
}

}  // namespace

int launch_plan(int32_t* plan, int32_t parts, const int32_t* lengths, int32_t batch, int32_t window, void* stream) {
  plan_kernel<<<1, kPlanThreads, kPlanSharedBytes, static_cast<cudaStream_t>(stream)>>>(plan, parts, lengths, batch,
                                                                                        window);
  return cudaGetLastError();
}

int launch_decode(const DecodeJob& job, void* stream) {
  const bool bf16 = job.step.type == CINCH_DECODE_BF16, packed = job.step.cache_format != CINCH_CACHE_16BIT;
  const auto launch =
      packed ? (bf16 ? &launch_packed_bf16 : &launch_packed_fp16) : (bf16 ? &launch_bf16 : &launch_fp16);
  if (job.phases == kStream || job.phases == kMerge || job.phases == kMap) return launch(job, false, stream);
  const int status = launch(job, true, stream);
  if (status != cudaErrorCooperativeLaunchTooLarge && status != cudaErrorNotSupported) return status;
  cudaGetLastError();  // forgets it
  DecodeJob phase = job;
  for (const int phases : {kStream, kMerge, kMap}) {
    if ((job.phases & phases) == 0 || (phases == kMap && job.step.v_head_dim == 0)) continue;
    phase.phases = phases;
    const int launched = launch(phase, false, stream);
    if (launched != cudaSuccess) return launched;
  }
  return cudaSuccess;
}

}  // namespace cinch::decode

using namespace cinch::decode;

extern "C" int32_t cinch_decode_sizes(const CinchDecodeStep* step, CinchDecodeSizes* sizes, char* error,
                                      uint64_t error_size) {
  Choice choice{};
  if (choose(*step, choice, error, error_size) != 0) return -1;
  const Tiling& tiling = choice.tiling;
  sizes->kernel = choice.kernel;
  sizes->parts = tiling.parts;
  sizes->resident = tiling.resident;
  sizes->plan_bytes = SplitPlan::bytes(tiling.parts, step->batch);
  sizes->scratch_bytes = scratch_layout(*step, tiling.parts, tiling.value_columns).bytes;
  return 0;
}

extern "C" int32_t cinch_decode_plan(int32_t* plan, int32_t parts, const int32_t* lengths, int32_t batch,
                                     int32_t window, void* stream, char* error, uint64_t error_size) {
  return cinch::border::report(launch_plan(plan, parts, lengths, batch, window, stream), error, error_size);
}

extern "C" int32_t cinch_decode_run(const CinchDecodeStep* step, void* stream, char* error, uint64_t error_size) {
  Choice choice{};
  if (choose(*step, choice, error, error_size) != 0) return -1;
  if (const char* const missing = missing_array(*step)) {
    snprintf(error, error_size, "%s", missing);
    return -1;
  }
  DecodeJob job{};
  job.step = *step;
  job.tiling = choice.tiling;
  job.scratch = scratch_layout(*step, job.tiling.parts, job.tiling.value_columns);
  job.phases = kAllPhases;
  const auto launch = choice.kernel == CINCH_DECODE_SM90 ? &launch_latent_sm90 : &launch_decode;
  return cinch::border::report(launch(job, stream), error, error_size);
}
