// Which models `bench decode` measures: those of its arguments, built-in shapes with random weights, and what
// conversions would make of them.
#pragma once

#include <string>
#include <vector>

#include "eval/bench/model_bench.h"

namespace cinch {

struct BenchModelWish {
  std::vector<std::string> models;   // paths
  std::vector<std::string> shapes;   // names of built-in shapes, with random weights
  bool random_weights = false;       // of `models`, of which a config.json is enough then
  std::vector<std::string> targets;  // "gqa:2", "mqa", "mla": each model also as converted to these, random
  int64_t rank = 0, rope_dim = -1;   // of "mla"
};

/// In the order of the arguments, every model followed by its targets. Throws UsageError, and what opening a model
/// throws.
std::vector<BenchModel> bench_models_of(const BenchModelWish& wish);

/// Of --shape.
std::vector<std::string> shape_names();

}  // namespace cinch
