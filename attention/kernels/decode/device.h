// Marks code that nvcc compiles for the device and the host compiler for the CPU, where the warp emulator runs it.
#pragma once

#if defined(__CUDACC__)
#define CINCH_HOST_DEVICE __host__ __device__ __forceinline__
#define CINCH_DEVICE __device__ __forceinline__
#else
#define CINCH_HOST_DEVICE inline
#define CINCH_DEVICE inline
#endif
