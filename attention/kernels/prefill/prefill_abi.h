/* The plain C border of the attention kernels of long prompts and of training: T query tokens of every sequence against
 * S keys and values, forward and backward. Plain data only: no LibTorch, no C++ type, no CUDA header (a stream is a
 * cudaStream_t passed as void*).
 *
 *   score[t, s] = scale * dot(q[h, t], k[h / (H/K), s])
 *   score       = softcap * tanh(score / softcap)                                    where softcap > 0
 *   out[h, t]   = sum over visible s of softmax(score[t])[s] * v[h / (H/K), s]
 *   lse[h, t]   = log of the sum over visible s of exp(score[t, s])
 *
 * Query t stands at key first_query + t and sees keys up to that one: none before first_keys[b, t], where documents are
 * packed, and none at first_query + t - window or before, where there is a window. A query that sees no key has out 0,
 * lse -infinity and no gradient. What lies beyond the arrays' sizes is never used, whatever it is (NaN too).
 *
 * Sizes in letters of docs/architecture: B sequences, H query heads, K KV heads, T queries, S keys, D columns of
 * queries and keys, Dv of values. */
#pragma once

#include <stdint.h>

enum CinchPrefillType { CINCH_PREFILL_BF16 = 0, CINCH_PREFILL_FP16 = 1 };

/* (B, heads, tokens, columns). Strides count elements, the last axis is contiguous; the data and the strides of what is
 * read are multiples of 16 bytes, of what is written of 4. */
struct CinchPrefillArray {
  void* data;
  int64_t batch_stride, head_stride, token_stride;
};

/* One layer's attention. A zeroed field means "without". */
struct CinchPrefill {
  int32_t type;        /* CinchPrefillType of all arrays but lse */
  int32_t batch;       /* B */
  int32_t n_heads;     /* H */
  int32_t n_kv_heads;  /* K, divides H */
  int32_t queries;     /* T */
  int32_t keys;        /* S */
  int32_t head_dim;    /* D, multiple of 8 in 8..256 */
  int32_t v_head_dim;  /* Dv, multiple of 8 in 8..256 */
  int32_t first_query; /* number of the key that stands where query 0 does; S - T at the end of a cache */
  int32_t window;      /* tokens; 0: none */
  float scale;         /* of the scores; positive */
  float softcap;       /* 0: none */

  struct CinchPrefillArray q;   /* (B, H, T, D) */
  struct CinchPrefillArray k;   /* (B, K, S, D) */
  struct CinchPrefillArray v;   /* (B, K, S, Dv) */
  struct CinchPrefillArray out; /* (B, H, T, Dv); written by the forward, read by the backward */
  float* lse; /* (B, H, T) contiguous; written by the forward (may be null there), read by the backward */
  /* (B, T) on the device, or null: the number of the first key of each query's document, never falling along T. */
  const int32_t* first_keys;
  int64_t first_keys_stride; /* between sequences */

  /* Backward only. */
  struct CinchPrefillArray d_out;         /* (B, H, T, Dv) */
  struct CinchPrefillArray d_q, d_k, d_v; /* of q, k and v; written */
  void* row_states;                       /* scratch of 16 bytes for each of B*H*T rows, 16-byte aligned */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Work on the current device and on `stream` (a cudaStream_t), do not wait, allocate nothing, can be captured into a
 * CUDA graph, and give the same bits for the same input. Return 0, or -1 with the reason in `error` (0-terminated, at
 * most `error_size` bytes). */
typedef int32_t (*CinchPrefillRun)(const struct CinchPrefill* work, void* stream, char* error, uint64_t error_size);

/* Writes out and lse. */
int32_t cinch_prefill_forward(const struct CinchPrefill* work, void* stream, char* error, uint64_t error_size);
/* Writes d_q, d_k and d_v. */
int32_t cinch_prefill_backward(const struct CinchPrefill* work, void* stream, char* error, uint64_t error_size);

#ifdef __cplusplus
}
#endif
