// Marks code that nvcc compiles for the device and the host compiler for the CPU, where the warp emulator runs it, and
// says what a tiling must know of a device.
#pragma once

#if defined(__CUDACC__)
#define CINCH_HOST_DEVICE __host__ __device__ __forceinline__
#define CINCH_DEVICE __device__ __forceinline__
#define CINCH_UNROLL _Pragma("unroll")
#define CINCH_UNROLL_BY_1 _Pragma("unroll 1")
#define CINCH_UNROLL_BY_2 _Pragma("unroll 2")
#define CINCH_UNROLL_BY_4 _Pragma("unroll 4")
#define CINCH_UNROLL_BY_8 _Pragma("unroll 8")
#else
#define CINCH_HOST_DEVICE inline
#define CINCH_DEVICE inline
#define CINCH_UNROLL
#define CINCH_UNROLL_BY_1
#define CINCH_UNROLL_BY_2
#define CINCH_UNROLL_BY_4
#define CINCH_UNROLL_BY_8
#endif

namespace cinch::warp {

struct Multiprocessor {
  int count;                   // on the device
  int shared_bytes;            // in all, 1 KiB of it lost per thread block
  int shared_bytes_per_block;  // largest that one thread block can have
};

}  // namespace cinch::warp
