// Latent decode with TMA and wgmma on devices of compute capability 9.0: what it covers, and its launch. Takes the plan
// and the scratch of the other decode kernels (decode_abi.h) and ends with their combine.
#pragma once

#include <cstdint>

#include "attention/kernels/decode/tiling.h"

namespace cinch::decode {

constexpr int kSm90Heads = 64;  // of one thread block

/// Null when this kernel covers the step's shape on such a device, else what it misses, in words.
inline const char* sm90_missing(const CinchDecodeStep& step, int compute_major, int compute_minor) {
  const int rank = step.kv_lora_rank, rope = step.qk_rope_head_dim;
  if (compute_major != 9 || compute_minor != 0) return "needs sm_90a";
  if (step.kind != CINCH_DECODE_LATENT) return "latent attention only";
  if (rank < 16 || rank > 512 || rank % 8 != 0) return "kv_lora_rank must be a multiple of 8 in 16..512";
  if (rope < 8 || rope > 128 || rope % 8 != 0) return "qk_rope_head_dim must be a multiple of 8 in 8..128";
  if (step.rope_per_kv_head != 0 && step.n_kv_heads > 1) return "one rotary key for all heads only";
  if (step.key_scales != 0) return "no key scales";
  if (step.cache_format != CINCH_CACHE_16BIT) return "caches of 16 bits only";
  return nullptr;
}

/// As choose_tiling, with the parts of this kernel's grid: one thread block per multiprocessor.
inline bool choose_sm90_tiling(const CinchDecodeStep& step, const Multiprocessor& processor, Tiling& tiling,
                               char* error, uint64_t error_size) {
  TilingWish wish;
  const int head_blocks = (step.n_heads + kSm90Heads - 1) / kSm90Heads;
  wish.parts = processor.count > head_blocks ? processor.count / head_blocks : 1;
  if (!choose_tiling(step, processor, wish, tiling, error, error_size)) return false;
  tiling.resident = 1;
  return true;
}

/// The step's phases (job.phases) on `stream`, a cudaStream_t; job.tiling from choose_sm90_tiling. Returns a
/// cudaError_t, 0: done. cudaErrorInvalidValue where a tensor map is refused: strides of q and of the cache must be
/// multiples of 8, sequences of a dense cache at least a token apart.
int launch_latent_sm90(const DecodeJob& job, void* stream);

/// For experiments.
struct Sm90Options {
  int tile_tokens = 0;  // 32 or 64 where both are compiled (R > 256); 0 leaves it to the kernel
};
int launch_latent_sm90_with(const Sm90Options& options, const DecodeJob& job, void* stream);

#ifdef CINCH_WATCHDOG
/// Where a wait that never ends is reported: {1, block x, block y, thread, barrier's offset, parity}, in mapped memory.
int watch_latent_sm90(uint32_t* report);
#endif

}  // namespace cinch::decode
