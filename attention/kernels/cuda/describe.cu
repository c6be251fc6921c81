// What `cinch doctor` says about CUDA devices. No LibTorch header here: compiles in seconds, talks through
// core/cuda_abi.h.
#include <cuda_runtime.h>
#include <stdio.h>

#include "core/cuda_abi.h"

namespace {

constexpr int kThreads = 256;
constexpr int kRuns = 8;
constexpr size_t kLargestCopy = size_t{256} << 20;  // bytes; well above any L2 cache

/// Copies 16 bytes per thread and step, neighbours on neighbouring addresses. count: number of 16-byte words.
__global__ void copy_kernel(const uint4* __restrict__ from, uint4* __restrict__ to, size_t count) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

/// Buffers and events of one measurement, released whatever happens.
struct CopyRun {
  void* from = nullptr;
  void* to = nullptr;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;

  ~CopyRun() {
    if (begin != nullptr) cudaEventDestroy(begin);
    if (end != nullptr) cudaEventDestroy(end);
    cudaFree(from);
    cudaFree(to);
  }
};

cudaError_t measure_copy(int blocks, size_t bytes, double& bytes_per_second) {
  CopyRun run;
  cudaError_t status = cudaMalloc(&run.from, bytes);
  if (status == cudaSuccess) status = cudaMalloc(&run.to, bytes);
  if (status == cudaSuccess) status = cudaMemset(run.from, 1, bytes);
  if (status == cudaSuccess) status = cudaEventCreate(&run.begin);
  if (status == cudaSuccess) status = cudaEventCreate(&run.end);
  bytes_per_second = 0;
  for (int i = 0; i < kRuns && status == cudaSuccess; ++i) {
    cudaEventRecord(run.begin);
    copy_kernel<<<blocks, kThreads>>>(static_cast<const uint4*>(run.from), static_cast<uint4*>(run.to),
                                      bytes / sizeof(uint4));
    cudaEventRecord(run.end);
    status = cudaGetLastError();
    if (status == cudaSuccess) status = cudaEventSynchronize(run.end);
    float milliseconds = 0;
    if (status == cudaSuccess) status = cudaEventElapsedTime(&milliseconds, run.begin, run.end);
    if (status != cudaSuccess || milliseconds <= 0) continue;
    const double rate = 2.0 * static_cast<double>(bytes) / (milliseconds * 1e-3);
    if (rate > bytes_per_second) bytes_per_second = rate;
  }
  return status;
}

int attribute(cudaDeviceAttr name, int index) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, name, index) == cudaSuccess ? value : 0;
}

cudaError_t describe_device(int index, CinchCudaDevice& device) {
  cudaDeviceProp properties;
  cudaError_t status = cudaGetDeviceProperties(&properties, index);
  if (status == cudaSuccess) status = cudaSetDevice(index);
  size_t free_memory = 0, total_memory = 0;
  if (status == cudaSuccess) status = cudaMemGetInfo(&free_memory, &total_memory);
  if (status != cudaSuccess) return status;
  snprintf(device.name, sizeof device.name, "%s", properties.name);
  device.total_memory = total_memory;
  device.free_memory = free_memory;
  device.compute_major = properties.major;
  device.compute_minor = properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.l2_bytes = static_cast<uint64_t>(properties.l2CacheSize);
  // Kilohertz and bits; two transfers per clock.
  device.specified_bytes_per_second =
      2e3 * attribute(cudaDevAttrMemoryClockRate, index) * attribute(cudaDevAttrGlobalMemoryBusWidth, index) / 8;
  size_t bytes = free_memory / 4 < kLargestCopy ? free_memory / 4 : kLargestCopy;
  bytes -= bytes % sizeof(uint4);
  return measure_copy(properties.multiProcessorCount * 8, bytes, device.copy_bytes_per_second);
}

}  // namespace

extern "C" int32_t cinch_cuda_describe(CinchCudaDevice* devices, int32_t capacity, char* error, uint64_t error_size) {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice) return 0;
  int current = 0;
  if (status == cudaSuccess) status = cudaGetDevice(&current);
  for (int i = 0; i < count && i < capacity && status == cudaSuccess; ++i) status = describe_device(i, devices[i]);
  if (status == cudaSuccess) status = cudaSetDevice(current);
  if (status == cudaSuccess) return count;
  snprintf(error, error_size, "%s", cudaGetErrorString(status));
  return -1;
}
