// What a conversion will do, worked out before any weight is read. No torch here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoints/tensor_source.h"
#include "convert/conversion_recipe.h"
#include "core/json.h"
#include "model/export/runtime_rules.h"
#include "model/model_config.h"

namespace cinch {

enum class TensorRole { kept, derived };

struct PlannedTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorRole role = TensorRole::kept;
};

struct ConversionPlan {
  ConversionRecipe recipe;  // as asked for, with layers and calibration window made explicit for this model
  ModelConfig source, target;
  int64_t source_parameters = 0, target_parameters = 0;
  std::vector<PlannedTensor> tensors;
  std::vector<bool> converted;  // (L) which layers get new attention
  double kv_ratio = 1.0;        // target bytes / source bytes, both at 16 bits
  int kv_bits = 16;             // of a cached number as it will be served
  double planned_kv_ratio = 1;  // with the target's cache at these bits
  int64_t peak_memory_bytes = 0;
  int64_t disk_bytes = 0;
  double seconds_estimate = 0;
  double break_even_tokens = 0;  // T* = weight bytes / bytes per token at batch 1
  std::vector<RuntimeVerdict> runtimes;
  std::vector<std::string> warnings;

  int phases() const;    // of a run, for progress: methods that use moments measure them first
  Json to_json() const;  // interface: docs/interface.md
};

}  // namespace cinch
