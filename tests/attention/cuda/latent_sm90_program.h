// What the parts of latent_sm90_device_test share. All of it is one translation unit.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

// The kernel itself, compiled so that a wait that never ends is reported.
#define CINCH_WATCHDOG
#include "attention/kernels/cuda/latent_sm90.cu"
#include "attention/kernels/decode/decode_launch.h"

namespace cinch::sm90 {
namespace {

using decode::DecodeJob;
using warp::Bf16;
using warp::Fp16;

volatile uint32_t* watchdog = nullptr;  // what a stuck kernel says

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("FAILED %s: %s\n", what, cudaGetErrorString(status));
  if (watchdog != nullptr && watchdog[0] != 0) {
    std::printf("    block %u.%u thread %u waits for parity %u of the barrier at +%u\n", watchdog[1], watchdog[2],
                watchdog[3], watchdog[5], watchdog[4]);
  }
  std::exit(2);
}

/// Memory on the device, of one type.
template <class V>
class Device {
 public:
  explicit Device(size_t count) : count_(count) {
    check(cudaMalloc(&data_, std::max<size_t>(count, 1) * sizeof(V)), "cudaMalloc");
  }
  explicit Device(const std::vector<V>& host) : Device(host.size()) {
    check(cudaMemcpy(data_, host.data(), count_ * sizeof(V), cudaMemcpyHostToDevice), "copy to the device");
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data_); }
  V* get() const { return data_; }
  size_t count() const { return count_; }
  std::vector<V> host() const {
    std::vector<V> values(count_);
    check(cudaMemcpy(values.data(), data_, count_ * sizeof(V), cudaMemcpyDeviceToHost), "copy from the device");
    return values;
  }

 private:
  V* data_ = nullptr;
  size_t count_;
};

int failures = 0;

void report(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok    " : "FAILED", what.c_str());
  if (!good) ++failures;
  std::fflush(stdout);
}

int multiprocessors = 0;
size_t l2_bytes = 0;

/// A job for a step whose sizes are known; owns plan and scratch.
class Job {
 public:
  /// parts 0: the kernel's own choice.
  Job(const CinchDecodeStep& step, const int32_t* lengths, int parts) {
    char error[256] = "";
    const warp::Multiprocessor processor{multiprocessors, 233472, kSharedLimit};
    decode::TilingWish wish;
    wish.parts = parts;
    const char* missing = decode::sm90_missing(step, 9, 0);
    if (missing != nullptr ||
        !(parts > 0 ? decode::choose_tiling(step, processor, wish, job.tiling, error, sizeof error)
                    : decode::choose_sm90_tiling(step, processor, job.tiling, error, sizeof error))) {
      std::printf("FAILED refused: %s\n", missing != nullptr ? missing : error);
      std::exit(2);
    }
    job.step = step;
    job.scratch = decode::scratch_layout(step, job.tiling.parts, job.tiling.value_columns);
    const size_t plan_words = decode::SplitPlan::bytes(job.tiling.parts, step.batch) / 4;
    check(cudaMalloc(&job.step.scratch, job.scratch.bytes), "scratch");
    check(cudaMemset(job.step.scratch, 0xff, job.scratch.bytes), "scratch");
    check(cudaMalloc(&plan_, plan_words * 4), "plan");
    job.step.plan = plan_;
    check(static_cast<cudaError_t>(
              decode::launch_plan(plan_, job.tiling.parts, lengths, step.batch, step.window, nullptr)),
          "plan");
    check(cudaDeviceSynchronize(), "plan");
  }
  Job(const Job&) = delete;
  ~Job() {
    cudaFree(job.step.scratch);
    cudaFree(plan_);
  }
  DecodeJob job{};

 private:
  int32_t* plan_ = nullptr;
};

void run_job(DecodeJob job, int phases, cudaStream_t stream, const decode::Sm90Options& options = {}) {
  job.phases = phases;
  check(static_cast<cudaError_t>(decode::launch_latent_sm90_with(options, job, stream)), "launch");
}

}  // namespace
}  // namespace cinch::sm90
