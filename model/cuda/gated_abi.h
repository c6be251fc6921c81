/* The gated activation of libcinch_cuda.so. Plain values only: both sides include this. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* silu(gate) * up of `count` numbers, each array in one piece on the device. */
struct CinchGated {
  int32_t element; /* CinchElement of all arrays */
  int64_t count;
  const void* gate;
  const void* up;
  const void* gradient; /* of the product; null: the forward pass */
  void* first;          /* forward: the product; backward: the gate's gradient */
  void* second;         /* backward: that of `up` */
};

/* Starts the kernel on `stream` (a cudaStream_t); 0, or -1 with the reason in `error` (0-terminated). */
typedef int32_t (*CinchCudaGated)(const struct CinchGated* work, void* stream, char* error, uint64_t error_size);
int32_t cinch_cuda_gated(const struct CinchGated* work, void* stream, char* error, uint64_t error_size);

#ifdef __cplusplus
}
#endif
