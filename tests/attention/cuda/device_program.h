// What the stand-alone device program's files share: checked CUDA calls, device memory, one decode step on the device.
#pragma once

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "attention/kernels/decode/decode_launch.h"
#include "attention/kernels/decode/split_plan.h"

namespace cinch::decode {

inline void check_status(int status, const char* what) {
  if (status == cudaSuccess) return;
  fprintf(stderr, "error: %s: %s\n", what, cudaGetErrorString(static_cast<cudaError_t>(status)));
  exit(2);
}
#define CINCH_CHECK(call) check_status((call), #call)

class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(uint64_t bytes) : bytes_(bytes) {
    if (bytes > 0) CINCH_CHECK(cudaMalloc(&data_, bytes));
  }
  template <class V>
  explicit DeviceMemory(const std::vector<V>& values) : DeviceMemory(values.size() * sizeof(V)) {
    if (bytes_ > 0) CINCH_CHECK(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice));
  }
  DeviceMemory(DeviceMemory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() { cudaFree(data_); }

  template <class V = void>
  V* as() const {
    return static_cast<V*>(data_);
  }
  uint64_t bytes() const { return bytes_; }
  template <class V>
  void read(std::vector<V>& values) const {
    CINCH_CHECK(cudaMemcpy(values.data(), data_, values.size() * sizeof(V), cudaMemcpyDeviceToHost));
  }

 private:
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

/// False, having said so, where there is no GPU; else prints which one it is.
inline bool announce_device() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    printf("skipped: no GPU\n");
    return false;
  }
  cudaDeviceProp properties;
  CINCH_CHECK(cudaGetDeviceProperties(&properties, 0));
  printf("%s, %d multiprocessors, L2 %d MiB\n", properties.name, properties.multiProcessorCount,
         properties.l2CacheSize >> 20);
  return true;
}
constexpr int kSkipped = 77;  // the exit code that ctest takes for it

/// work(i) for i < count, on all cores of the host.
template <class Work>
void on_all_cores(size_t count, const Work& work) {
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i) {
    threads.emplace_back([&] {
      for (size_t each = next++; each < count; each = next++) work(each);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// One line of a case that does not hold, or of every case.
inline void say_case(const std::string& name, bool good, const std::string& verdict, bool loud) {
  if (loud || !good) printf("%-5s %s: %s\n", good ? "ok" : "FAULT", name.c_str(), verdict.c_str());
}

/// The case grid of the cache append; how many cases do not hold.
int run_append_cases(bool tiny, bool loud);
/// Times of the cache append; `copy_rate`: GB/s read + written of a copy in this run.
void bench_append(double copy_rate);

/// The tables that README's numbers come from. Returns 0.
int run_benchmark(const std::vector<std::string>& arguments);

}  // namespace cinch::decode
