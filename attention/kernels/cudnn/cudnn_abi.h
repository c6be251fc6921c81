/* The plain C border of libcinch_cudnn.so: causal attention of many queries by cuDNN's graph API, forward and backward.
 * Plain data only: no LibTorch, no C++ type, no CUDA header (a stream is a cudaStream_t passed as void*).
 *
 *   score[h, t, s] = scale * dot(q[h, t], k[h / (H/K), s])        for the keys that a query sees
 *   out[h, t]      = sum over them of softmax(score[h, t])[s] * v[h / (H/K), s]
 *   stats[h, t]    = natural logarithm of the sum over them of exp(score[h, t, s])
 *
 * The last query stands at the last key; a query sees the keys up to its own position, and with a window those of them
 * that are less than `window` positions away. S >= T.
 *
 * Sizes in letters of docs/architecture: B sequences, H query heads, K KV heads, T queries, S keys, Dk width of queries
 * and keys, Dv width of values. Axes are (B, heads, tokens, width); the last one is contiguous.
 *
 * A plan is one shape's kernel, chosen by cuDNN's heuristics and compiled at run time, about half a second. The plug-in
 * keeps plans, a bounded number of them, by all fields of the shape and the target. Every function may be called from
 * several threads. They return a CinchCudnnStatus, with the reason in `error` (0-terminated, at most `error_size`
 * bytes) where it is not 0. */
#pragma once

#include <stdint.h>

enum CinchCudnnStatus {
  CINCH_CUDNN_OK = 0,
  CINCH_CUDNN_REFUSED = 1, /* cuDNN has no kernel for this shape on this target */
  CINCH_CUDNN_FAILED = 2,  /* no cuDNN, no device, a buffer too small, or a kernel did not start */
  CINCH_CUDNN_UNKNOWN = 3  /* no plan of this shape is kept, and none was to be built */
};

enum CinchCudnnPass { CINCH_CUDNN_FORWARD = 0, CINCH_CUDNN_FORWARD_STATS = 1, CINCH_CUDNN_BACKWARD = 2 };
enum CinchCudnnType { CINCH_CUDNN_BF16 = 0, CINCH_CUDNN_FP16 = 1 };

/* Between sequences, heads and tokens, in elements. Multiples of 8, more than 0. */
struct CinchCudnnStrides {
  int64_t batch, head, token;
};

/* One pass of one layer. Compared as bytes: zero all of it first, and what a pass does not use. */
struct CinchCudnnShape {
  int64_t batch, heads, kv_heads, queries, keys; /* B, H, K, T, S */
  int64_t key_width, value_width;                /* Dk, Dv */
  int64_t window;                                /* tokens; 0: none */
  struct CinchCudnnStrides q, k, v;
  struct CinchCudnnStrides out;        /* and of the gradient by it */
  struct CinchCudnnStrides dq, dk, dv; /* backward */
  float scale;
  int32_t type;          /* CinchCudnnType of everything but stats */
  int32_t pass;          /* CinchCudnnPass */
  int32_t deterministic; /* backward: 1 gives the same bits in every run, for B*H*T*S*2 bytes more of workspace */
};

/* What a plan is for: a device of this machine; or one described by `properties`, cuDNN's JSON of a device
 * (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION), for a plan that is built, and never run, without that device. */
struct CinchCudnnTarget {
  int32_t device;             /* CUDA's number of it, which must be the current one; -1 with properties */
  int32_t compute_capability; /* 90 for 9.0 */
  const char* properties;     /* null: the device */
};

struct CinchCudnnPlan {
  uint64_t workspace_bytes; /* on the device, 256-byte aligned */
  char engine[120];         /* cuDNN's name of the kernel and its settings */
};

/* Forward reads q, k, v and writes out and, with FORWARD_STATS, stats. Backward reads q, k, v, out, stats, dout and
 * writes dq, dk, dv. 16-byte aligned. */
struct CinchCudnnTensors {
  const void *q, *k, *v;
  void* out;
  float* stats; /* (B, H, T) contiguous */
  const void* dout;
  void *dq, *dk, *dv;
  void* workspace; /* workspace_bytes, free again when the stream is past this pass */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the cuDNN that is loaded: 91900 is 9.19.0. */
typedef int32_t (*CinchCudnnVersion)(int64_t* version, char* error, uint64_t error_size);
int32_t cinch_cudnn_version(int64_t* version, char* error, uint64_t error_size);

/* 90 for a device of compute capability 9.0. */
typedef int32_t (*CinchCudnnCapability)(int32_t device, int32_t* capability, char* error, uint64_t error_size);
int32_t cinch_cudnn_capability(int32_t device, int32_t* capability, char* error, uint64_t error_size);

/* Describes the plan. Where none is kept: builds one, or with `build` 0 returns UNKNOWN. What was refused once stays
 * refused. */
typedef int32_t (*CinchCudnnGetPlan)(const struct CinchCudnnShape* shape, const struct CinchCudnnTarget* target,
                                     int32_t build, struct CinchCudnnPlan* plan, char* error, uint64_t error_size);
int32_t cinch_cudnn_plan(const struct CinchCudnnShape* shape, const struct CinchCudnnTarget* target, int32_t build,
                         struct CinchCudnnPlan* plan, char* error, uint64_t error_size);

/* Puts the pass onto the stream. Builds the plan where none is kept, which cannot be done while the stream is captured
 * into a CUDA graph. */
typedef int32_t (*CinchCudnnRun)(const struct CinchCudnnShape* shape, const struct CinchCudnnTarget* target,
                                 const struct CinchCudnnTensors* tensors, void* stream, char* error,
                                 uint64_t error_size);
int32_t cinch_cudnn_run(const struct CinchCudnnShape* shape, const struct CinchCudnnTarget* target,
                        const struct CinchCudnnTensors* tensors, void* stream, char* error, uint64_t error_size);

/* A plan as bytes. Sets `size`; FAILED, with nothing written, where `capacity` is less. */
typedef int32_t (*CinchCudnnSave)(const struct CinchCudnnShape* shape, const struct CinchCudnnTarget* target,
                                  void* bytes, uint64_t capacity, uint64_t* size, char* error, uint64_t error_size);
int32_t cinch_cudnn_save(const struct CinchCudnnShape* shape, const struct CinchCudnnTarget* target, void* bytes,
                         uint64_t capacity, uint64_t* size, char* error, uint64_t error_size);

/* Keeps a saved plan as the shape's. The bytes must be of this shape and of a target with the same properties. */
typedef int32_t (*CinchCudnnLoad)(const struct CinchCudnnShape* shape, const struct CinchCudnnTarget* target,
                                  const void* bytes, uint64_t size, char* error, uint64_t error_size);
int32_t cinch_cudnn_load(const struct CinchCudnnShape* shape, const struct CinchCudnnTarget* target, const void* bytes,
                         uint64_t size, char* error, uint64_t error_size);

#ifdef __cplusplus
}
#endif
