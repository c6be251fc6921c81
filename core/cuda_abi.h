/* The plain C border between cinch and libcinch_cuda.so: fixed-size values, no C++ type crosses it. */
#pragma once

#include <stdint.h>

/* Types of numbers that kernels take. */
enum CinchElement { kCinchF32 = 0, kCinchF16 = 1, kCinchBF16 = 2 };

/* One CUDA device. */
struct CinchCudaDevice {
  char name[256];
  uint64_t total_memory; /* bytes */
  uint64_t free_memory;  /* bytes */
  int32_t compute_major, compute_minor;
  int32_t multiprocessors;
  double copy_bytes_per_second; /* read + written by our own copy kernel, best of several runs */
  uint64_t l2_bytes;
  double specified_bytes_per_second; /* of the memory, from its clock and the width of its bus; 0: the driver does not
                                        say */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Fills `devices[0..capacity)` and returns the number of devices that the driver reports, or -1 with the reason in
 * `error` (0-terminated, at most `error_size` bytes). Runs a copy of 256 MiB (less on small devices) on each device
 * described. */
typedef int32_t (*CinchCudaDescribe)(struct CinchCudaDevice* devices, int32_t capacity, char* error,
                                     uint64_t error_size);
int32_t cinch_cuda_describe(struct CinchCudaDevice* devices, int32_t capacity, char* error, uint64_t error_size);

#ifdef __cplusplus
}
#endif
