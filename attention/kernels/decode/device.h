// Marks code that nvcc compiles for the device and the host compiler for the CPU, where the warp emulator runs it.
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
