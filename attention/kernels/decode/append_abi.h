/* The plain C border of the cache append: new tokens of one layer get their rotary position and go into the cache, in
 * one launch. Plain data only, as in decode_abi.h, whose letters, strides and pages these are.
 *
 * Tokens: T of every sequence, at positions lengths[b] - T .. lengths[b] - 1: lengths are those after the append, as
 * the decode step reads them. Where lengths[b] < T the first T - lengths[b] tokens of the sequence are not there, and
 * nothing of them is written.
 *
 * Rotation turns the pair (a, b) of a plane by the angle of the token's position: (a cos - b sin, b cos + a sin), in
 * fp32, the product with cos rounded and then a fused multiply-add, as Rope::apply computes fp32 numbers; then rounded
 * to the type. Pairs stand as halves (Hugging Face: dims j and j + planes) or as neighbours (2j, 2j + 1). Numbers
 * beyond the rotated ones pass through. Pages below 16 bits are made of the rotated keys in the 16-bit type. */
#pragma once

#include "attention/kernels/decode/decode_abi.h"

enum CinchRotaryPairs { CINCH_PAIRS_HALVES = 0, CINCH_PAIRS_NEIGHBOURS = 1 };

/* T tokens of rows of numbers: element (b, h, t, i) is data[b*batch + h*head + t*token + i]. */
struct CinchTokenRows {
  const void* data;
  int64_t batch_stride, head_stride, token_stride;
};

/* A zeroed field means "without". */
struct CinchCacheAppend {
  int32_t kind;         /* CinchDecodeKind */
  int32_t type;         /* CinchDecodeType of every array that is not said to be of another */
  int32_t cache_format; /* CinchCacheFormat; other than 16 bits: latent, paged, rotated as neighbours */
  int32_t pairs;        /* CinchRotaryPairs */

  int32_t batch, tokens;    /* B, T */
  int32_t n_heads;          /* H */
  int32_t n_kv_heads;       /* K: KV heads of grouped attention; key scales of latent attention */
  int32_t head_dim;         /* D; grouped only */
  int32_t kv_lora_rank;     /* R; latent only */
  int32_t qk_rope_head_dim; /* Dr; latent only */
  int32_t rope_per_kv_head; /* 1: a latent row has K rotary keys of Dr each */
  int32_t rotary_dim;       /* rotated numbers of a head: grouped at most D, latent Dr */
  int32_t key_scales;       /* 1: rows end with K key scales */

  const float* cos; /* (positions, rotary_dim / 2) contiguous, with every factor that the model puts on it */
  const float* sin;

  struct CinchTokenRows q; /* numbers to rotate, or null: grouped (B, H, T, D), latent (B, H, T, Dr) */
  void* q_out;             /* where they go; strides below; may be q's own place, must not overlap it otherwise */
  int64_t q_out_batch_stride, q_out_head_stride, q_out_token_stride;

  struct CinchTokenRows k;      /* grouped (B, K, T, D); latent: the rotary keys (B, 1 or K, T, Dr) */
  struct CinchTokenRows v;      /* grouped (B, K, T, D); latent: the latent (B, 1, T, R) */
  struct CinchTokenRows scales; /* latent with key_scales: (B, 1, T, K) */

  struct CinchDecodeCache keys;   /* grouped: keys; latent: the rows (16 bits) or the pages (page_layout.h) */
  struct CinchDecodeCache values; /* grouped only */
  struct CinchDecodeCache open;   /* int4: the open page of every sequence, see decode_abi.h */
  const int32_t* block_table;     /* as in the decode step; names a page for every position that is written */
  int64_t block_table_stride;
  const int32_t* lengths; /* (B) after the append, on the device */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Returns 0, or -1 with the reason in `error`. Allocates nothing, does not wait, can be captured into a CUDA graph. */
typedef int32_t (*CinchCacheAppendRun)(const struct CinchCacheAppend* append, void* stream, char* error,
                                       uint64_t error_size);
int32_t cinch_cache_append(const struct CinchCacheAppend* append, void* stream, char* error, uint64_t error_size);

#ifdef __cplusplus
}
#endif
