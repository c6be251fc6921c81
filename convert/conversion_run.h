// The layer-by-layer part of a conversion: two residual streams of the calibration tokens (the original's and the
// converted model's), one layer's weights at a time. Finished layers are read back from the partial folder, so an
// interrupted run computes on exactly the same numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "convert/calibration.h"
#include "convert/conversion_plan.h"
#include "convert/moment_file.h"
#include "convert/partial_folder.h"
#include "convert/provenance.h"
#include "convert/transform.h"
#include "model/decoder_model.h"
#include "model/model_writer.h"

namespace cinch {

/// Some layer that the plan converts is not finished.
bool has_unsolved_layers(const ConversionPlan& plan, const PartialFolder& partial);

class ConversionRun {
 public:
  struct Inputs {
    std::shared_ptr<ModelSource> source;
    const ConversionPlan& plan;
    const CalibrationSet& calibration;
    const ModelWriterOptions& output;
    const PartialFolder& partial;
    const MomentFile* moments;  // of the original, for methods that use them
    at::Device device;
  };
  explicit ConversionRun(Inputs inputs);

  /// Converts what is not finished yet and replays what is. Throws InterruptedError between layers.
  void run_layers();
  const std::vector<Json>& layer_reports() const { return reports_; }
  /// The plan's target with what only solving told: rotary frequencies and ranks of latent layers; call after
  /// run_layers.
  const ModelConfig& target() const { return target_; }

  /// Loss of both models on the held-out windows; call after run_layers.
  HeldOutLoss held_out_loss() const;
  /// Logits of the converted model for the first `tokens` tokens of window 0, (tokens, V) on the CPU; call after
  /// run_layers.
  at::Tensor first_logits(int64_t tokens) const;

 private:
  /// The type in which a tensor of the output is stored.
  Dtype stored_dtype(const at::Tensor& tensor) const;
  void survey_layers();
  void solve_layer(int64_t layer, const DecoderLayer& original) const;
  void advance_student(int64_t layer);
  at::Tensor read_converted(const std::string& name, const NamedTensors& derived) const;
  const ModelTrunk& converted_trunk() const;

  Inputs in_;
  ModelConfig target_;
  Dtype dtype_;
  bool rounds_ = false;  // kept tensors lose bits in the output's type
  LayerStream teacher_;
  at::Tensor student_;  // (W, T, E)
  std::vector<Json> reports_;
  std::unique_ptr<SharedChoice> shared_;
  mutable std::unique_ptr<ModelTrunk> rounded_trunk_;
};

}  // namespace cinch
