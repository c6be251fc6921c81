// One process that trains a model on a teacher's distribution and the next token, and can stop and go on to the bit.
#pragma once

#include <filesystem>
#include <optional>

#include "core/json.h"
#include "train/adamw.h"
#include "train/learning_rate.h"
#include "train/linear_cross_entropy_kd.h"
#include "train/token_samples.h"
#include "train/trained_model.h"

namespace cinch {

struct TrainRecipe {
  LossWeights loss = {};
  double learning_rate = 5e-5;        // of attention weights
  double trunk_learning_rate = 1e-5;  // of all others, where they are trained
  double weight_decay = 0.01;         // of matrices; vectors have none
  double clip = 1.0;                  // norm of the gradients; 0: none
  AdamWOptions adamw = {};
  Schedule schedule = {};                    // its steps are the run's
  int64_t batch = 8;                         // samples of a step
  int64_t micro_batch = 4;                   // samples that run at once; the rest of the step is accumulated
  int64_t chunk_bytes = int64_t{256} << 20;  // of the loss

  /// Throws UsageError.
  void check() const;
  Json to_json() const;  // what a resumed run must agree in
};

struct StepReport {
  int64_t step = 0;  // done by now
  double loss = 0, cross_entropy = 0, distillation = 0;
  double gradient_norm = 0, learning_rate = 0;
  bool skipped = false;  // a gradient was not finite: nothing was changed
};

class Trainer {
 public:
  /// `teacher` may be null where the recipe does not distil. All must outlive the trainer.
  Trainer(TrainedModel& model, const Teacher* teacher, const TokenSamples& samples, const TrainRecipe& recipe);

  StepReport step();
  int64_t steps_done() const { return steps_done_; }
  bool done() const { return steps_done_ >= recipe_.schedule.steps; }

  /// Writes `folder`/step_<n>/ under a temporary name, flushes and renames; then removes all but the last `keep`.
  void save(const std::filesystem::path& folder, int keep = 2) const;
  /// Continues from the latest state of the folder; false when there is none. Throws ConfigError naming what differs
  /// when the state is of another recipe or other data, CheckpointError when it is damaged.
  bool resume(const std::filesystem::path& folder);

 private:
  Json identity() const;

  TrainedModel& model_;
  const Teacher* teacher_;
  const TokenSamples& samples_;
  TrainRecipe recipe_;
  std::vector<const Parameter*> order_;  // of the optimizer's states
  std::optional<AdamW> optimizer_;
  int64_t steps_done_ = 0;
};

}  // namespace cinch
