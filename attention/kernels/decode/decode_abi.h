/* The plain C border of the decode kernels: one query token per sequence against a cache of keys and values. Plain data
 * only: no LibTorch, no C++ type, no CUDA header (a stream is a cudaStream_t passed as void*).
 *
 * Grouped-query attention (MHA, GQA, MQA): keys and values of every KV head. Latent attention (MLA, absorbed form): a
 * cached row is [latent (R) | rotary keys (Dr, or K*Dr with one per KV head) | key scales (K, optional)]; keys are the
 * latent and the rotary part, values the latent again, shared by all heads.
 *
 *   score[h, s] = scale * key_scale[s, h / (H/K)] * dot(q[h], key[s, h / (H/K)])
 *   score       = softcap * tanh(score / softcap)                                    where softcap > 0
 *   out[h]      = sum over visible s of softmax(score[h])[s] * value[s]
 *   out[h]      = value_map[h] out[h] + value_bias[h]                                where v_head_dim > 0
 *
 * The query stands at position length - 1: it sees tokens s < length, and with a window those with
 * s >= length - window. Numbers of tokens that are not seen are never used, whatever they are (NaN too).
 *
 * Sizes in letters of docs/architecture: B sequences, H query heads, K KV heads, D head_dim, R latent rank, Dr rotary
 * width, Dv value width. Strides count elements, not bytes; the last axis of every array is contiguous. Pointers and
 * cache strides must be multiples of 16 bytes. */
#pragma once

#include <stdint.h>

enum CinchDecodeKind { CINCH_DECODE_GROUPED = 0, CINCH_DECODE_LATENT = 1 };
/* Which kernel runs: the first that covers the step, sm_90 before mma; or one that is forced, and fails where it does
 * not cover the step. */
enum CinchDecodeKernel { CINCH_DECODE_ANY = 0, CINCH_DECODE_MMA = 1, CINCH_DECODE_SM90 = 2 };
enum CinchDecodeType { CINCH_DECODE_BF16 = 0, CINCH_DECODE_FP16 = 1 };

/* How a latent cache holds its numbers. Below 16 bits: pages of bytes (page_layout.h). */
enum CinchCacheFormat { CINCH_CACHE_16BIT = 0, CINCH_CACHE_INT8 = 1, CINCH_CACHE_FP8 = 2, CINCH_CACHE_INT4 = 3 };

/* Tokens of one page of a paged cache, and the unit of the split plan. */
enum { CINCH_DECODE_PAGE = 64 };

/* Where a cache holds its rows. Paged: sequence b's token t is row t % 64 of page block_table[b][t / 64]. Dense (no
 * block table): page_stride is that of sequences, and token t is row t. */
struct CinchDecodeCache {
  const void* data;
  int64_t page_stride;  /* between pages; between sequences where dense */
  int64_t head_stride;  /* between KV heads; unused by latent attention */
  int64_t token_stride; /* between tokens */
};

/* One decode step of one layer. A zeroed field means "without". */
struct CinchDecodeStep {
  int32_t kind; /* CinchDecodeKind */
  int32_t type; /* CinchDecodeType of q, caches, out, value_map and value_bias */

  int32_t batch;            /* B */
  int32_t n_heads;          /* H */
  int32_t n_kv_heads;       /* K; of latent attention: the groups of rotary keys and key scales, else 1 */
  int32_t head_dim;         /* D, multiple of 8 in 32..256; grouped only */
  int32_t kv_lora_rank;     /* R, multiple of 8 in 16..1024; latent only */
  int32_t qk_rope_head_dim; /* Dr; the rotary columns of a row are a multiple of 8 in 8..1024; latent only */
  int32_t rope_per_kv_head; /* 1: a row has K rotary keys of Dr each, query head h meets that of h / (H/K) */
  int32_t key_scales;       /* 1: a row ends with K key scales; rows are then padded to a multiple of 8 */
  int32_t v_head_dim;       /* Dv, multiple of 8 in 8..512; latent only: asks for value_map */
  int32_t window;           /* tokens; 0: none */
  float scale;              /* of the scores */
  float softcap;            /* 0: none */

  const void* q; /* (B, H, D), or (B, H, R+Dr) absorbed */
  int64_t q_batch_stride, q_head_stride;
  struct CinchDecodeCache keys;   /* grouped: keys; latent: the rows */
  struct CinchDecodeCache values; /* grouped only */
  const int32_t* block_table;     /* (B, block_table_stride) page indices on the device, or null: dense caches */
  int64_t block_table_stride;
  const int32_t* lengths; /* (B) tokens in the cache, on the device; 0 gives out 0 and lse -inf */

  const void* value_map; /* (H, Dv, R) where v_head_dim > 0; else out stays latent */
  int64_t value_map_head_stride, value_map_row_stride;
  const void* value_bias; /* (H, Dv) contiguous, or null; added where length > 0 */

  void* out; /* (B, H, D), (B, H, R), or where v_head_dim > 0 (B, H, Dv) */
  int64_t out_batch_stride, out_head_stride;
  float* lse; /* (B, H) contiguous, natural logarithm of the sum of exponentials of the scores, or null */

  const int32_t* plan; /* from cinch_decode_plan, for the same lengths; layout in split_plan.h */
  void* scratch;       /* scratch_bytes of cinch_decode_sizes; zeroed once by the caller, of one stream at a time */

  int32_t kernel; /* CinchDecodeKernel */

  /* CinchCacheFormat; other than 16 bits: latent and paged, `keys` with page_stride in bytes (token_stride unused). */
  int32_t cache_format;
  /* int4: the last length % 64 tokens of sequence b are 16-bit rows like those of a 16-bit cache, token t in row t % 64
   * of its own open page; page_stride: between sequences, in elements. */
  struct CinchDecodeCache open;
};

/* What a caller has to allocate on the device, 256-byte aligned, for one shape: fields that are not pointers decide. */
struct CinchDecodeSizes {
  uint64_t plan_bytes;
  uint64_t scratch_bytes;
  int32_t parts;    /* of the split plan: shapes with equal parts, batch and window can share one plan */
  int32_t resident; /* thread blocks that the kernel runs on each multiprocessor */
  int32_t kernel;   /* CinchDecodeKernel that will run */
};

#ifdef __cplusplus
extern "C" {
#endif

/* All return 0, or -1 with the reason in `error` (0-terminated, at most `error_size` bytes). They work on the current
 * device, do not wait for it, allocate nothing, and can be captured into a CUDA graph. */

/* Sizes for step's shape on the current device. Fails where no kernel covers the shape, naming the rule. */
typedef int32_t (*CinchDecodeGetSizes)(const struct CinchDecodeStep* step, struct CinchDecodeSizes* sizes, char* error,
                                       uint64_t error_size);
int32_t cinch_decode_sizes(const struct CinchDecodeStep* step, struct CinchDecodeSizes* sizes, char* error,
                           uint64_t error_size);

/* Cuts the tokens of all sequences into `parts` equal shares, on the device, from lengths (batch) and window: once per
 * step, used by all layers whose sizes say the same parts and whose window is the same. Replaying a captured graph
 * follows the lengths that are on the device then. */
typedef int32_t (*CinchDecodePlan)(int32_t* plan, int32_t parts, const int32_t* lengths, int32_t batch, int32_t window,
                                   void* stream, char* error, uint64_t error_size);
int32_t cinch_decode_plan(int32_t* plan, int32_t parts, const int32_t* lengths, int32_t batch, int32_t window,
                          void* stream, char* error, uint64_t error_size);

/* Runs one layer's step on `stream` (a cudaStream_t). */
typedef int32_t (*CinchDecodeRun)(const struct CinchDecodeStep* step, void* stream, char* error, uint64_t error_size);
int32_t cinch_decode_run(const struct CinchDecodeStep* step, void* stream, char* error, uint64_t error_size);

#ifdef __cplusplus
}
#endif
