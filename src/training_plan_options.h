// The options that say which uptraining to plan; they are `uptrain`'s where they mean the same.
#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "model/model_source.h"
#include "train/planning/training_plan.h"

namespace cinch {

struct TrainingPlanFlags {
  bool uptrain = false;
  std::string teacher, trainable = "attention", dtype = "f32", device_memory;
  double device_flops = 0;
  TrainingPlanRequest request;
  const CLI::Option *batch = nullptr, *micro_batch = nullptr;  // whether they were given
};

/// A plan reads no weights: a config.json will do.
std::shared_ptr<ModelSource> open_planned(const std::string& path, const std::string& flag);

void add_training_plan_options(CLI::App& command, TrainingPlanFlags& flags);

/// The plan of training `student`, and what one process has on `device` ("cpu", "cuda", "cuda:1"): as the flags say,
/// else as this machine has. Throws UsageError.
struct PlannedTraining {
  TrainingPlan plan;
  DeviceLimits device;
};
PlannedTraining plan_of_flags(const TrainingPlanFlags& flags, const ModelConfig& student,
                              const std::optional<ModelConfig>& teacher, const std::string& device);

}  // namespace cinch
