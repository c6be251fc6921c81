// `bench kernels`: the decode of one layer on random data, by cinch's kernels and by what LibTorch has for the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "attention/kernels/decode/decode_functions.h"
#include "core/json.h"
#include "eval/bench/decode_case.h"

namespace cinch {

constexpr double kDecodeTolerance = 5e-3;  // relative Frobenius error of a right result in 16 bits

struct KernelBenchOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kBFloat16;
  const DecodeFunctions* functions = nullptr;  // that work on the device's memory; null: none
  std::vector<std::string> kernels;            // names of contenders; empty: all
  bool graphs = true;
  int least_replays = 5;
  int64_t memory_bytes = 0;    // that may be used
  int64_t rotation_bytes = 0;  // repeats go over inputs of more than so many bytes together
  double copy_bytes_per_second = 0, specified_bytes_per_second = 0;  // of the device's memory; 0: not known
};

/// One case and contender.
struct KernelBenchRow {
  DecodeCase decode;
  std::string contender, kernel, layout;  // kernel: that ran; layout: "paged" or "dense"
  bool ours = false;
  std::string status = "ok";  // or "not covered", "wrong", "failed", "out of memory", "does not fit"
  std::string reason;
  double seconds = 0, fastest = 0, slowest = 0, plan_seconds = 0;
  double error = -1;  // -1: not computed
  int64_t cache_bytes = 0, io_bytes = 0, rotated_bytes = 0;
  int replays = 0;
  bool graph = false;
};

/// Rows of every case, in order; a case's rows are handed to `on_rows` when it is done. Stops after a case when the
/// user asks to (interrupt_requested). Throws UsageError on unknown names of kernels.
void bench_kernels(const std::vector<DecodeCase>& cases, const KernelBenchOptions& options,
                   const std::function<void(const std::vector<KernelBenchRow>&)>& on_rows);

/// With the keys of bench/results/README.md.
Json row_json(const KernelBenchRow& row, const KernelBenchOptions& options);

}  // namespace cinch
