#include "attention/kernels/cuda/latent_decode_sm90.h"

#include <cuda.h>
#include <cudaTypedefs.h>

#include <string>

#include "attention/kernels/cuda/sm90_machine.h"

namespace cinch::sm90 {
namespace {

template <class T, int kColumns, bool kSplitColumns, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    latent_decode(const __grid_constant__ CinchDecodeStep step, const __grid_constant__ PartialResults partial,
                  const __grid_constant__ CUtensorMap cache, const __grid_constant__ CUtensorMap queries) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  Gpu gpu;
  LatentDecodeBlock<Gpu, T, kColumns, kSplitColumns, kTokens> block(gpu, step, partial, &cache, &queries);
  block.run();
#endif  // elsewhere latent_decode_missing refuses
}

/// The driver's function, without linking the driver.
cudaError_t find_encode(PFN_cuTensorMapEncodeTiled_v12000& encode) {
  static void* function = nullptr;
  if (function == nullptr) {
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    if (status != cudaSuccess) return status;
    if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  }
  encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  return cudaSuccess;
}

/// A map of (blocks, rows, columns) whose boxes are `box_rows` rows of 64 columns, swizzled by 128 bytes; strides in
/// elements.
struct MapRequest {
  const char* name;
  const void* data;
  uint64_t columns, rows, blocks;
  int64_t row_stride, block_stride;
  uint32_t box_rows;
};

cudaError_t make_map(CUtensorMap& map, const MapRequest& request, int32_t type, std::string& why) {
  PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
  const cudaError_t status = find_encode(encode);
  if (status != cudaSuccess) {
    why = std::string("cuTensorMapEncodeTiled: ") + cudaGetErrorString(status);
    return status;
  }
  const cuuint64_t size[3] = {request.columns, request.rows, request.blocks};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(request.row_stride) * 2,
                                 static_cast<cuuint64_t>(request.block_stride) * 2};
  const cuuint32_t box[3] = {kBlockColumns, request.box_rows, 1}, steps[3] = {1, 1, 1};
  const CUresult result =
      encode(&map, type == CINCH_DECODE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
             const_cast<void*>(request.data), size, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return cudaSuccess;
  why = std::string("cuTensorMapEncodeTiled refuses the ") + request.name + " (" + std::to_string(result) +
        "): sizes " + std::to_string(size[0]) + ", " + std::to_string(size[1]) + ", " + std::to_string(size[2]) +
        ", strides in bytes " + std::to_string(strides[0]) + ", " + std::to_string(strides[1]);
  return cudaErrorInvalidValue;
}

cudaError_t make_maps(const CinchDecodeStep& step, int tile_tokens, CUtensorMap& cache, CUtensorMap& queries,
                      std::string& why) {
  const uint64_t width = static_cast<uint64_t>(step.kv_lora_rank + step.qk_rope_head_dim);
  const CinchDecodeCache& keys = step.keys;
  // The size of a page pool is not known here: page indices are trusted.
  const bool paged = step.block_table != nullptr;
  const uint64_t rows = paged ? CINCH_DECODE_PAGE : static_cast<uint64_t>(keys.page_stride / keys.token_stride);
  const uint64_t blocks = paged ? uint64_t{1} << 31 : static_cast<uint64_t>(step.batch);
  const cudaError_t status = make_map(cache,
                                      {"cache", keys.data, width, rows, blocks, keys.token_stride, keys.page_stride,
                                       static_cast<uint32_t>(tile_tokens)},
                                      step.type, why);
  if (status != cudaSuccess) return status;
  return make_map(queries,
                  {"queries", step.q, width, static_cast<uint64_t>(step.n_heads), static_cast<uint64_t>(step.batch),
                   step.q_head_stride, step.q_batch_stride, kOperandRows},
                  step.type, why);
}

template <class T, class V>
cudaError_t launch(const CinchDecodeStep& step, int parts, const PartialResults& partial, cudaStream_t stream,
                   std::string& why) {
  CUtensorMap cache, queries;
  cudaError_t status = make_maps(step, V::kTokens, cache, queries, why);
  if (status != cudaSuccess) return status;
  const auto kernel = latent_decode<T, V::kColumns, V::kSplitColumns, V::kTokens>;
  const SharedLayout layout =
      shared_layout(step.kv_lora_rank + step.qk_rope_head_dim, V::kColumns, V::kSplitColumns, V::kTokens);
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(layout.total));
  if (status == cudaSuccess) {
    const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(divided_up(step.n_heads, kOperandRows)));
    kernel<<<grid, kThreads, layout.total, stream>>>(step, partial, cache, queries);
    status = cudaGetLastError();
  }
  if (status != cudaSuccess) why = std::string("latent decode (sm_90): ") + cudaGetErrorString(status);
  return status;
}

}  // namespace

std::string latent_decode_missing(const CinchDecodeStep& step, int compute_major, int compute_minor) {
  const int rank = step.kv_lora_rank, rope = step.qk_rope_head_dim;
  if (compute_major != 9 || compute_minor != 0) return "needs sm_90a";
  if (step.kind != CINCH_DECODE_LATENT) return "latent attention only";
  if (rank < 16 || rank > 512 || rank % 8 != 0) return "latent rank must be a multiple of 8 in 16..512";
  if (rope < 8 || rope > 128 || rope % 8 != 0) return "rotary width must be a multiple of 8 in 8..128";
  if (step.n_heads < 1 || step.n_heads > 128) return "1 to 128 heads";
  if (step.rope_per_kv_head != 0) return "one rotary key for all heads only";
  if (step.key_scales != 0) return "no key scales";
  if (step.block_table == nullptr && step.keys.page_stride < step.keys.token_stride) {
    return "sequences of a dense cache must be apart";
  }
  if (step.q_head_stride % 8 != 0 || step.q_batch_stride % 8 != 0) return "query strides must be multiples of 8";
  return "";
}

#ifdef CINCH_WATCHDOG
cudaError_t latent_decode_watch(uint32_t* report) {
  volatile uint32_t* const address = report;
  return cudaMemcpyToSymbol(watchdog_report, &address, sizeof address);
}
#endif

int latent_decode_parts(const CinchDecodeStep& step, int multiprocessors) {
  const int parts = multiprocessors / divided_up(step.n_heads, kOperandRows);
  return parts > 1 ? parts : 1;
}

cudaError_t latent_decode_launch(const CinchDecodeStep& step, int parts, const PartialResults& partial,
                                 cudaStream_t stream, std::string& why) {
  return with_variant(step.kv_lora_rank, step.kv_lora_rank + step.qk_rope_head_dim, [&](auto variant) {
    using V = decltype(variant);
    return step.type == CINCH_DECODE_BF16 ? launch<Bfloat16, V>(step, parts, partial, stream, why)
                                          : launch<Half, V>(step, parts, partial, stream, why);
  });
}

}  // namespace cinch::sm90
