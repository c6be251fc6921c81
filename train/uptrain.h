// A whole uptraining run of one process: data, teacher, steps, states, and the healed model as an ordinary folder.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/model_writer.h"
#include "text/corpus.h"
#include "train/trainer.h"

namespace cinch {

struct UptrainOptions {
  ModelWriterOptions output;
  TrainRecipe recipe;  // without the schedule's steps and warm-up, which follow from `tokens`
  TrainedModel::Options model;
  std::vector<CorpusSpec> data;  // texts or token files, with their shares of the tokens
  int64_t tokens = 0;            // to train on
  int64_t window = 512;          // tokens of a sample
  double warmup_share = 0.05;    // of the steps
  uint64_t seed = 0;
  int64_t validation_windows = 16;  // held out of the end of the data, in its shares
  int64_t save_every = 100;         // steps between states
  bool resume = false;
  std::string version;  // for cinch.json
};

/// Of held-out windows, nats per token.
struct HeldOutLosses {
  int64_t tokens = 0;
  double cross_entropy = 0, distillation = 0;  // the latter 0 without a teacher
  Json to_json() const;
};

struct UptrainReport {
  int64_t steps = 0, resumed_steps = 0, tokens = 0;
  int64_t trained_parameters = 0, teacher_bytes = 0;
  HeldOutLosses before, after;
  double seconds = 0, tokens_per_second = 0;  // of this process
  Json to_json() const;
};

/// Where states and metrics.jsonl of an unfinished run lie.
std::filesystem::path training_folder(const std::filesystem::path& output);

/// Trains `student`, on `teacher` where the recipe distils, and writes options.output. A run that is interrupted saves
/// its state and throws InterruptedError; with `resume` the next one goes on as if nothing had been. Throws UsageError
/// when there is an unfinished run and neither resume nor force.
UptrainReport uptrain(std::shared_ptr<ModelSource> student, std::shared_ptr<ModelSource> teacher,
                      const UptrainOptions& options);

}  // namespace cinch
