#include "attention/kernels/cuda/latent_sm90.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "attention/kernels/cuda/latent_sm90_block.h"
#include "attention/kernels/cuda/sm90_machine.h"
#include "attention/kernels/decode/combine.h"

namespace cinch::decode {
namespace {

using sm90::divided_up;
using sm90::SharedLayout;

template <class T, int kColumns, bool kSplitColumns, int kTokens>
__global__ void __launch_bounds__(sm90::kThreads, 1)
    latent_kernel(const __grid_constant__ DecodeJob job, const __grid_constant__ CUtensorMap cache,
                  const __grid_constant__ CUtensorMap queries) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  sm90::Gpu gpu;
  sm90::LatentDecodeBlock<sm90::Gpu, T, kColumns, kSplitColumns, kTokens> block(gpu, job, &cache, &queries);
  block.run();
#endif  // elsewhere sm90_missing refuses
}

// Each is launched while the kernel before it still runs (programmatic dependent launch) and takes the places that it
// leaves. The plan is there by then, what that kernel writes is there after griddepcontrol.wait.

constexpr int kCombineRegisters = 128;  // of up to kMaxThreads threads

template <class T>
__global__ void __maxnreg__(kCombineRegisters) merge_kernel(const __grid_constant__ DecodeJob job) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  Combine<T> combine(job, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), static_cast<int>(threadIdx.x));
  combine.prefetch_share();
  sm90::Gpu::await_dependencies();
  combine.merge();
#endif
}

template <class T>
__global__ void __maxnreg__(kCombineRegisters) map_kernel(const __grid_constant__ DecodeJob job) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Combine<T> combine(job, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x),
                           static_cast<int>(threadIdx.x));
  combine.prefetch_map();
  sm90::Gpu::await_dependencies();
  combine.map();
#endif
}

/// The driver's function, without linking the driver.
cudaError_t find_encode(PFN_cuTensorMapEncodeTiled_v12000& encode) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  return status == cudaSuccess && found != cudaDriverEntryPointSuccess ? cudaErrorNotSupported : status;
}

/// 16-bit numbers (blocks, rows, columns), in boxes of `box_rows` rows of 64 columns; strides in elements.
struct MapRequest {
  const void* data;
  uint64_t columns, rows, blocks;
  int64_t row_stride, block_stride;
  uint32_t box_rows;
};

cudaError_t make_map(CUtensorMap& map, const MapRequest& request) {
  static PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
  if (encode == nullptr) {
    const cudaError_t status = find_encode(encode);
    if (status != cudaSuccess) return status;
  }
  const cuuint64_t size[3] = {request.columns, request.rows, request.blocks};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(request.row_stride) * 2,
                                 static_cast<cuuint64_t>(request.block_stride) * 2};
  const cuuint32_t box[3] = {sm90::kBlockColumns, request.box_rows, 1}, steps[3] = {1, 1, 1};
  // The type matters for what fills the outside only, and 0 is 0 in both.
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(request.data), size,
                                 strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

MapRequest cache_request(const CinchDecodeStep& step, int width, int tile_tokens) {
  const CinchDecodeCache& keys = step.keys;
  MapRequest request{
      keys.data,        static_cast<uint64_t>(width),      CINCH_DECODE_PAGE, uint64_t{1} << 31, keys.token_stride,
      keys.page_stride, static_cast<uint32_t>(tile_tokens)};
  // Paged: how many pages there are is not known here, page indices are trusted. Dense: rows end where the next
  // sequence begins.
  if (step.block_table == nullptr) {
    request.rows = keys.token_stride > 0 ? static_cast<uint64_t>(keys.page_stride / keys.token_stride) : 0;
    request.blocks = static_cast<uint64_t>(step.batch);
  }
  return request;
}

template <class T, class V>
cudaError_t launch_stream(const DecodeJob& job, cudaStream_t stream) {
  const CinchDecodeStep& step = job.step;
  const int width = step.kv_lora_rank + step.qk_rope_head_dim;
  CUtensorMap cache, queries;
  cudaError_t status = make_map(cache, cache_request(step, width, V::kTokens));
  if (status == cudaSuccess) {
    status = make_map(queries,
                      {step.q, static_cast<uint64_t>(width), static_cast<uint64_t>(step.n_heads),
                       static_cast<uint64_t>(step.batch), step.q_head_stride, step.q_batch_stride, sm90::kOperandRows});
  }
  if (status != cudaSuccess) return status;
  const auto kernel = &latent_kernel<T, V::kColumns, V::kSplitColumns, V::kTokens>;
  const SharedLayout layout = sm90::shared_layout(width, V::kColumns, V::kSplitColumns, V::kTokens);
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(layout.total));
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>(job.tiling.parts),
                  static_cast<unsigned>(divided_up(step.n_heads, sm90::kOperandRows)));
  kernel<<<grid, sm90::kThreads, layout.total, stream>>>(job, cache, queries);
  return cudaGetLastError();
}

/// A kernel of at most `works` thread blocks that waits by itself for the one ahead of it on the stream; `follows` says
/// that this is a kernel of the same step.
cudaError_t launch_dependent(void (*kernel)(DecodeJob), int64_t works, int shared_bytes, bool follows,
                             const DecodeJob& job, cudaStream_t stream) {
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status != cudaSuccess) return status;
  const Tiling& t = job.tiling;
  const int64_t most = int64_t{8} * t.parts;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = follows ? 1 : 0;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(works < most ? works : most));
  config.blockDim = dim3(static_cast<unsigned>(32 * t.warps * t.row_groups));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, job);
}

template <class T>
cudaError_t launch(const DecodeJob& job, const Sm90Options& options, cudaStream_t stream) {
  const CinchDecodeStep& step = job.step;
  const Tiling& t = job.tiling;
  const bool streams = (job.phases & kStream) != 0, merges = (job.phases & kMerge) != 0;
  cudaError_t status = cudaSuccess;
  if (streams) {
    const int rank = step.kv_lora_rank;
    status = sm90::with_variant(rank, rank + step.qk_rope_head_dim, options.tile_tokens,
                                [&](auto variant) { return launch_stream<T, decltype(variant)>(job, stream); });
  }
  if (status == cudaSuccess && merges) {
    const int64_t works = int64_t{step.batch} * merge_chunks(step, t);
    const int shared_bytes = t.merge_groups > 1 ? kMergeBytes * 32 * t.warps * t.row_groups : 0;
    status = launch_dependent(&merge_kernel<T>, works, shared_bytes, streams, job, stream);
  }
  if (status == cudaSuccess && (job.phases & kMap) != 0 && step.v_head_dim > 0)
    status = launch_dependent(&map_kernel<T>, map_pieces(step, t), t.shared_bytes, streams || merges, job, stream);
  return status;
}

}  // namespace

int launch_latent_sm90(const DecodeJob& job, void* stream) { return launch_latent_sm90_with({}, job, stream); }

int launch_latent_sm90_with(const Sm90Options& options, const DecodeJob& job, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return job.step.type == CINCH_DECODE_BF16 ? launch<Bf16>(job, options, on) : launch<Fp16>(job, options, on);
}

#ifdef CINCH_WATCHDOG
int watch_latent_sm90(uint32_t* report) {
  volatile uint32_t* const address = report;
  return cudaMemcpyToSymbol(sm90::watchdog_report, &address, sizeof address);
}
#endif

}  // namespace cinch::decode
