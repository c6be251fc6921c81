// What `bench` prints: tables for people, one JSON object for programs.
#pragma once

#include <string>
#include <vector>

#include "eval/bench/kernel_bench.h"
#include "eval/bench/model_bench.h"

namespace cinch {

/// What all rows of a run share.
struct BenchRun {
  std::string what;    // "kernels", "decode"
  std::string device;  // name of the CPU or GPU
  std::string driver, commit;
  double copy_bytes_per_second = 0, specified_bytes_per_second = 0;  // 0: not known
  double seconds = 0;
  bool interrupted = false;
};

std::string kernel_table(const BenchRun& run, const std::vector<KernelBenchRow>& rows);
/// Cases together, each with its models in order; times beside the first model's.
std::string model_table(const BenchRun& run, const std::vector<ModelBenchRow>& rows);

Json bench_json(const BenchRun& run, const std::vector<KernelBenchRow>& rows, const KernelBenchOptions& options);
Json bench_json(const BenchRun& run, const std::vector<ModelBenchRow>& rows, const ModelBenchOptions& options);

}  // namespace cinch
