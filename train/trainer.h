// Trains a model on a teacher's attention outputs, on its distribution and on the next token, in one process or many,
// and can stop and go on to the bit.
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>

#include "core/json.h"
#include "train/adamw.h"
#include "train/learning_rate.h"
#include "train/linear_cross_entropy_kd.h"
#include "train/loss_guard.h"
#include "train/token_samples.h"
#include "train/train_state.h"
#include "train/trained_model.h"

namespace cinch {

/// Which learning rate a weight has.
enum class RateGroup {
  fresh,
  kept,
  trunk
};  // attention that conversion made, attention of the teacher's shape, others

struct TrainStage {
  /// Each layer's attention learns the teacher's output on the teacher's own stream; else the losses of `loss`.
  bool local = false;
  LossWeights loss = {};
  std::array<double, 3> learning_rates = {5e-5, 5e-5, 1e-5};  // by RateGroup
  /// A weight's rate is times the root mean square that its elements had before training. Converted matrices differ in
  /// size by a factor of hundreds.
  bool relative_rates = false;
  Schedule schedule = {};

  Json to_json() const;
};

struct TrainRecipe {
  std::vector<TrainStage> stages;
  double weight_decay = 0.01;  // of matrices; vectors have none
  double clip = 1.0;           // norm of the gradients; 0: none
  AdamWOptions adamw = {};
  LossGuard::Options guard = {};
  int64_t batch = 8;                         // samples of a step, of all processes together
  int64_t micro_batch = 4;                   // samples that a process runs at once; the rest of its part is accumulated
  int64_t chunk_bytes = int64_t{256} << 20;  // of the loss

  int64_t steps() const;
  /// Throws UsageError.
  void check() const;
  Json to_json() const;  // what a resumed run must agree in
};

struct StepReport {
  int64_t step = 0;  // done by now
  size_t stage = 0;
  double loss = 0, cross_entropy = 0, distillation = 0, local = 0;
  double gradient_norm = 0, learning_rate = 0;
  bool skipped = false;  // refused by the guard: nothing was changed
};

class Trainer {
 public:
  /// `teacher` may be null where no stage needs it. All must outlive the trainer.
  Trainer(TrainedModel& model, const Teacher* teacher, const TokenSamples& samples, const TrainRecipe& recipe);

  StepReport step();
  int64_t steps_done() const { return steps_done_; }
  bool done() const { return steps_done_ >= recipe_.steps(); }

  /// Starts saving a state with `writer`.
  void save(StateWriter& writer);
  /// Continues from the latest state of the folder, whatever the number of processes was that wrote it; false when
  /// there is none. Throws ConfigError naming what differs when the state is of another recipe or other data,
  /// CheckpointError when it is damaged.
  bool resume(const std::filesystem::path& folder);

  RateGroup rate_group(const Parameter& parameter) const;

 private:
  struct Place {
    size_t stage;
    int64_t step;  // in the stage
  };
  Place place() const;
  void make_optimizer();
  double scale_of(const Parameter& parameter) const;
  std::vector<StateShare> shares();
  /// Loss (of a local stage its error), cross entropy and KL: sums of this process's part, fp64 on the device.
  at::Tensor take_micro_batch(const TrainStage& stage, int64_t first, int64_t count, bool last);
  /// Norm of all gradients of all processes, clipped to the recipe's.
  double clip_gradients();
  Json identity() const;

  TrainedModel& model_;
  const Teacher* teacher_;
  const TokenSamples& samples_;
  TrainRecipe recipe_;
  std::optional<AdamW> optimizer_;
  LossGuard guard_;
  int64_t steps_done_ = 0;
  int64_t denominator_ = 1;  // targets of the running step
};

}  // namespace cinch
