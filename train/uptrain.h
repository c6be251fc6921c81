// A whole uptraining run: data, teacher, stages, states, and the healed model as an ordinary folder.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/model_writer.h"
#include "text/corpus.h"
#include "train/trainer.h"

namespace cinch {

/// A stage with its length in tokens, from which its schedule's steps and warm-up follow.
struct UptrainStage {
  TrainStage train;
  int64_t tokens = 0;
};

struct UptrainOptions {
  ModelWriterOptions output;
  TrainRecipe recipe;  // without its stages
  std::vector<UptrainStage> stages;
  TrainedModel::Options model;
  std::vector<CorpusSpec> data;  // texts or token files, with their shares of the tokens
  int64_t window = 512;          // tokens of a sample
  double warmup_share = 0.05;    // of a stage's steps
  uint64_t seed = 0;
  int64_t validation_windows = 16;  // held out of the end of the data, in its shares
  int64_t save_every = 100;         // steps between states
  int keep = 2;                     // states that stay
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
  int64_t steps = 0, resumed_steps = 0, tokens = 0, skipped_steps = 0;
  int processes = 1;
  int64_t trained_parameters = 0, teacher_bytes = 0;
  HeldOutLosses before, after;
  double seconds = 0, tokens_per_second = 0;  // of this process
  Json to_json() const;
};

/// Where states and metrics.jsonl of an unfinished run lie.
std::filesystem::path training_folder(const std::filesystem::path& output);

/// Trains `student`, on `teacher` where a stage needs it, with all processes of `group`, of which the first writes
/// options.output. When one process is interrupted, all save the same state and throw InterruptedError; with `resume`
/// the next run goes on as if nothing had been, with any number of processes. Throws UsageError when there is an
/// unfinished run and neither resume nor force, Error while it still runs.
UptrainReport uptrain(std::shared_ptr<ModelSource> student, std::shared_ptr<ModelSource> teacher,
                      const UptrainOptions& options, std::shared_ptr<ProcessGroup> group = single_process());

}  // namespace cinch
