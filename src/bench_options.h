// The options of `bench`; each is a recipe key of the same name.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "eval/bench/case_grid.h"
#include "src/bench_models.h"

namespace cinch {

struct BenchFlags {
  std::string what;
  std::string device = "cpu", dtype, commit = "unknown", output;
  std::vector<std::string> kernels, kv_bits;
  std::vector<int64_t> batches, contexts, ranks, rope_dims;
  bool no_graphs = false;
  // kernels
  std::string kind;
  bool quick = false, ragged = false;
  std::vector<int64_t> heads, kv_heads, head_dims, v_head_dims;
  // decode
  std::vector<std::string> models, shapes, targets;
  bool random_weights = false;
  int steps = 20;
  /// Given options that are of one of the two only.
  std::vector<const CLI::Option*> of_kernels, of_decode;
};

void add_bench_options(CLI::App& command, BenchFlags& flags);

/// What can be said before anything is opened. Throws UsageError.
void check_bench_flags(const BenchFlags& flags);

/// Throws UsageError.
GridWish grid_of_flags(const BenchFlags& flags);
BenchModelWish models_of_flags(const BenchFlags& flags);
std::vector<CacheFormat> formats_of_flags(const BenchFlags& flags);

}  // namespace cinch
