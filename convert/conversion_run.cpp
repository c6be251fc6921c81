#include "convert/conversion_run.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "convert/layer_problems.h"
#include "convert/solvers/latent_moments.h"
#include "convert/transform.h"
#include "core/allocator.h"
#include "core/errors.h"
#include "core/progress.h"

namespace cinch {
namespace {

constexpr int64_t kLogitTokens = 128;  // tokens whose logits are held at a time

/// Of the loss at every token but a window's last; sums over one chunk.
struct ChunkLoss {
  double nll_before = 0, nll_after = 0, kl = 0;
};

ChunkLoss chunk_loss(const at::Tensor& logits_before, const at::Tensor& logits_after, const at::Tensor& next) {
  const at::Tensor before = at::log_softmax(logits_before, -1), after = at::log_softmax(logits_after, -1);
  const at::Tensor index = next.unsqueeze(-1);
  ChunkLoss loss;
  loss.nll_before = -before.gather(-1, index).to(at::kDouble).sum().item<double>();
  loss.nll_after = -after.gather(-1, index).to(at::kDouble).sum().item<double>();
  loss.kl = at::sum(before.exp() * (before - after), {-1}).to(at::kDouble).sum().item<double>();
  return loss;
}

Json layer_report(int64_t layer, const LayerSolution& solution) {
  Json report = {{"layer", layer},
                 {"kept_energy_k", solution.kept_energy_k},
                 {"kept_energy_v", solution.kept_energy_v},
                 {"output_error_before_refit", solution.output_error_before_refit},
                 {"output_error", solution.output_error},
                 {"refit_lambda", solution.refit_lambda},
                 {"head_order", solution.head_order},
                 {"warnings", solution.warnings}};
  if (solution.predicted_error > 0) report["predicted_error"] = solution.predicted_error;
  if (solution.predicted_error_own_slots > 0) report["predicted_error_own_slots"] = solution.predicted_error_own_slots;
  if (const auto* latent = std::get_if<LatentWeights>(&solution.weights)) {
    report["rank"] = latent->kv_a_proj.size(0) - 2 * static_cast<int64_t>(solution.rope_inv_freq.size());
    report["rope_inv_freq"] = solution.rope_inv_freq;
  }
  return report;
}

constexpr const char* kInterruptHelp = "the finished layers are kept: repeat the command with --resume to go on";

}  // namespace

ConversionRun::ConversionRun(Inputs inputs)
    : in_(std::move(inputs)),
      target_(in_.plan.target),
      dtype_(output_dtype(in_.output, in_.plan.source)),
      teacher_(in_.source, in_.calibration.windows, {.dtype = at::kFloat, .device = in_.device}) {
  for (const TensorInfo& info : in_.source->tensors().tensors()) {
    rounds_ = rounds_ || dtype_bits(dtype_) < dtype_bits(info.dtype) ||
              (dtype_ == Dtype::kF16 && info.dtype == Dtype::kBF16) ||
              (dtype_ == Dtype::kBF16 && info.dtype == Dtype::kF16);
  }
  student_ = rounds_ ? ModelTrunk(in_.plan.target, in_.source->family(),
                                  [&](const std::string& name) { return read_converted(name, {}); })
                           .embed(in_.calibration.windows.to(in_.device))
                     : teacher_.hidden().clone();
}

Dtype ConversionRun::stored_dtype(const at::Tensor& tensor) const {
  // ggml computes with f32 vectors.
  return in_.output.format == "gguf" && tensor.dim() == 1 ? Dtype::kF32 : dtype_;
}

at::Tensor ConversionRun::read_converted(const std::string& name, const NamedTensors& derived) const {
  const auto found = derived.find(name);
  if (found != derived.end()) return found->second.to(in_.device, at::kFloat);
  at::Tensor tensor = in_.source->tensor(name, at::kFloat);
  if (rounds_) tensor = tensor.to(torch_dtype(stored_dtype(tensor))).to(at::kFloat);
  return tensor.to(in_.device);
}

void ConversionRun::solve_layer(int64_t layer, const DecoderLayer& original) const {
  LayerProblem problem = layer_problem(*in_.source, target_.layers[static_cast<size_t>(layer)], in_.calibration.roles,
                                       layer, original, teacher_.hidden());
  problem.student = student_;
  problem.shared = shared_.get();
  std::optional<LatentMoments> moments;
  if (in_.moments != nullptr) {
    moments = in_.moments->load(layer);
    problem.moments = &*moments;
  }
  const LayerSolution solution = transform(in_.plan.recipe.method).solve(problem, in_.plan.recipe);

  std::map<std::string, PartialFolder::StoredTensor> stored;
  for (const auto& [name, tensor] : in_.source->family().attention_tensors(target_, layer, solution.weights)) {
    const Dtype dtype = stored_dtype(tensor);
    const at::Tensor rounded = tensor.to(at::kCPU, torch_dtype(dtype)).contiguous();
    if (!at::isfinite(tensor).all().item<bool>()) {
      throw Error(fmt::format("tensor \"{}\" came out with values that are not finite", name), kNotFiniteHelp);
    }
    if (!at::isfinite(rounded).all().item<bool>()) {
      throw UnsupportedError(
          fmt::format("tensor \"{}\" has values outside of the range of {}", name, dtype_name(dtype)),
          "write --dtype bf16 or f32");
    }
    stored[name] = {dtype, rounded};
  }
  in_.partial.store_layer(layer, stored, layer_report(layer, solution));
}

void ConversionRun::advance_student(int64_t layer) {
  NamedTensors derived;
  if (in_.plan.converted[static_cast<size_t>(layer)]) {
    PartialFolder::StoredLayer stored = in_.partial.load_layer(layer);
    derived = std::move(stored.tensors);
    reports_.push_back(std::move(stored.report));
    AttentionSpec& spec = target_.layers[static_cast<size_t>(layer)];
    if (spec.kind == AttentionKind::latent) {
      spec.rope_inv_freq = reports_.back().at("rope_inv_freq").get<std::vector<double>>();
      spec.kv_lora_rank = reports_.back().at("rank").get<int64_t>();
    }
  }
  const ModelFamily& family = in_.source->family();
  const DecoderLayer converted(target_, layer, family.read_layer(target_, layer, [&](const std::string& name) {
    return read_converted(name, derived);
  }));
  const int64_t step = teacher_.batch_windows();
  for (int64_t first = 0; first < student_.size(0); first += step) {
    at::Tensor batch = student_.narrow(0, first, std::min(step, student_.size(0) - first));
    batch.copy_(converted.forward(batch));
  }
  for (const WeightSpec& weight : family.weights(in_.plan.source)) {
    if (weight.layer == layer) in_.source->tensors().release(weight.name);
  }
}

bool has_unsolved_layers(const ConversionPlan& plan, const PartialFolder& partial) {
  return std::any_of(plan.recipe.layers.begin(), plan.recipe.layers.end(),
                     [&](int64_t layer) { return !partial.has_layer(layer); });
}

void ConversionRun::survey_layers() {
  const Transform& method = transform(in_.plan.recipe.method);
  std::vector<std::unique_ptr<LayerSurvey>> surveys;
  for (const int64_t layer : in_.plan.recipe.layers) {
    with_surveyed_layer(
        *in_.source, target_.layers[static_cast<size_t>(layer)], layer, *in_.moments,
        [&](const LayerProblem& problem) { surveys.push_back(method.survey(problem, in_.plan.recipe)); });
    check_interrupt(kInterruptHelp);
  }
  shared_ = method.choose(surveys, in_.plan.recipe);
  for (const int64_t layer : in_.plan.recipe.layers)
    shared_->complete(layer, target_.layers[static_cast<size_t>(layer)]);
}

void ConversionRun::run_layers() {
  const Transform& method = transform(in_.plan.recipe.method);
  if (method.surveys(in_.plan.recipe) && has_unsolved_layers(in_.plan, in_.partial)) survey_layers();
  const auto total = static_cast<uint64_t>(in_.plan.source.n_layers);
  Progress progress({.phase = "convert",
                     .unit = "layers",
                     .total = total,
                     .index = in_.plan.phases() - 2,
                     .count = in_.plan.phases()});
  for (int64_t layer = 0; layer < in_.plan.source.n_layers; ++layer) {
    with_context(fmt::format("converting layer {}", layer), [&] {
      const DecoderLayer original = teacher_.load_layer();
      if (in_.plan.converted[static_cast<size_t>(layer)] && !in_.partial.has_layer(layer)) solve_layer(layer, original);
      teacher_.advance(original);
    });
    advance_student(layer);
    return_freed_memory();
    progress.advance();
    check_interrupt(kInterruptHelp);
  }
  progress.finish();
}

const ModelTrunk& ConversionRun::converted_trunk() const {
  if (!rounds_) return teacher_.trunk();
  if (!rounded_trunk_) {
    rounded_trunk_ = std::make_unique<ModelTrunk>(in_.plan.target, in_.source->family(),
                                                  [&](const std::string& name) { return read_converted(name, {}); });
  }
  return *rounded_trunk_;
}

HeldOutLoss ConversionRun::held_out_loss() const {
  HeldOutLoss loss;
  if (in_.calibration.synthetic) return loss;
  const at::Tensor& teacher = teacher_.hidden();
  ChunkLoss sum;
  for (const int64_t window : in_.calibration.roles.held_out) {
    const int64_t scored = teacher.size(1) - 1;
    for (int64_t first = 0; first < scored; first += kLogitTokens) {
      const int64_t count = std::min(kLogitTokens, scored - first);
      const at::Tensor next = in_.calibration.windows[window].narrow(0, first + 1, count).to(in_.device);
      const ChunkLoss chunk = chunk_loss(teacher_.trunk().logits(teacher[window].narrow(0, first, count)),
                                         converted_trunk().logits(student_[window].narrow(0, first, count)), next);
      sum.nll_before += chunk.nll_before;
      sum.nll_after += chunk.nll_after;
      sum.kl += chunk.kl;
    }
    loss.tokens += scored;
  }
  const auto tokens = static_cast<double>(std::max<int64_t>(loss.tokens, 1));
  loss.nll_before = sum.nll_before / tokens;
  loss.nll_after = sum.nll_after / tokens;
  loss.kl = sum.kl / tokens;
  return loss;
}

at::Tensor ConversionRun::first_logits(int64_t tokens) const {
  return converted_trunk().logits(student_[0].narrow(0, 0, tokens)).to(at::kCPU);
}

}  // namespace cinch
