// What an uptraining will need, worked out from configurations alone: memory of each process at every level of ZeRO,
// arithmetic per token, and with a device's limits the level to take and the time. No torch here. How the memory is
// laid out: train/weight_unit.h and train/trained_model.h; activations: train/activation_bytes.h.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "core/json.h"
#include "model/model_config.h"

namespace cinch {

constexpr int kZeroLevels = 4;

struct TrainingPlanRequest {
  ModelConfig student;
  std::optional<ModelConfig> teacher;  // what the student was converted from; none: next-token loss alone
  bool trains_all = false;             // else the attention alone
  int64_t compute_bytes = 4;           // of a number in the compute type: 2, 4 or 8; masters are fp32, or fp64 for 8
  int64_t window = 512;                // tokens of a sample
  int64_t micro_batch = 4;             // samples that a process runs at once
  int64_t batch = 8;                   // samples of a step, of all processes
  int64_t tokens = 0;                  // of the whole run
  int64_t world = 1;                   // processes
  bool recompute = false;
  bool on_cpu = true;
  int64_t chunk_bytes = int64_t{256} << 20;  // of the loss

  /// Throws UsageError.
  void check() const;
};

/// Bytes that one process holds at its worst moment.
struct TrainingMemory {
  int64_t frozen_weights = 0;   // the student's
  int64_t teacher_weights = 0;  // those that the student does not hold, frozen and identical
  int64_t trained_weights = 0;  // in the compute type
  int64_t master_weights = 0;   // 0 where they are the trained weights themselves
  int64_t moments = 0;
  int64_t gradients = 0;
  int64_t activations = 0;    // that wait for the backward pass
  int64_t loss = 0;           // final states, chunks of logits, the head's gradient
  int64_t layer_passes = 0;   // of one layer, beyond what waits; not at the same moment as the loss
  int64_t communication = 0;  // weights gathered and gradients reduced, one or two units at a time
  int64_t program = 0;        // code, libraries and, on a GPU, its context: an allowance

  int64_t total() const;
  Json to_json() const;
};

/// Per token; a multiplication and an addition are two.
struct TrainingFlops {
  double forward = 0, backward = 0, recomputation = 0;  // layers
  double teacher = 0;                                   // its layers
  double loss = 0;                                      // heads of both models, and the gradients of the student's
  double total() const { return forward + backward + recomputation + teacher + loss; }
  Json to_json() const;
};

struct TrainingPlan {
  TrainingPlanRequest request;
  int64_t parameters = 0, trained_parameters = 0;
  int64_t teacher_parameters = 0;  // that the student does not hold
  std::array<TrainingMemory, kZeroLevels> memory = {};
  TrainingFlops flops = {};

  int64_t steps() const;
};

/// What one process has.
struct DeviceLimits {
  int64_t memory_bytes = 0;
  double flops = 0;  // per second, as training sustains them; 0: not known
};

/// Throws UsageError (numbers that do not fit each other), UnsupportedError (a teacher of another vocabulary or depth).
TrainingPlan plan_training(const TrainingPlanRequest& request);

/// The smallest level whose total fits; none where none does.
std::optional<int> smallest_zero_level(const TrainingPlan& plan, int64_t memory_bytes);

/// For a plan that does not fit at any level: the first of some changes, each added to the ones before, that makes it
/// fit: "with --recompute, --micro-batch 1, --zero 2: 61.2 GiB"; else what is missing at best.
std::string way_to_fit(const TrainingPlan& plan, int64_t memory_bytes);

/// Tokens per second of all processes together; communication between them is not counted.
double planned_tokens_per_second(const TrainingPlan& plan, const DeviceLimits& device);

/// The `uptraining` object of docs/interface.md.
Json training_plan_json(const TrainingPlan& plan, const DeviceLimits& device);

}  // namespace cinch
