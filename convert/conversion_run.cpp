#include "convert/conversion_run.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>

#include "convert/transform.h"
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
  if (!solution.rope_inv_freq.empty()) report["rope_inv_freq"] = solution.rope_inv_freq;
  return report;
}

constexpr const char* kInterruptHelp = "the finished layers are kept: repeat the command with --resume to go on";
constexpr const char* kNotFiniteHelp = "`cinch verify MODEL` lists every tensor that holds NaN or infinity";

/// Solvers fail on NaN in ways that do not tell where it came from.
void check_finite(const LayerProblem& problem, const NamedTensors& weights, const std::filesystem::path& model) {
  for (const auto& [name, tensor] : weights) {
    if (!tensor.isfinite().all().item<bool>())
      throw CheckpointError(fmt::format("{}: tensor \"{}\" holds NaN or infinity", model.string(), name),
                            kNotFiniteHelp);
  }
  if (!problem.teacher.isfinite().all().item<bool>()) {
    throw CheckpointError(fmt::format("{}: the activations before this layer are NaN or infinite", model.string()),
                          kNotFiniteHelp);
  }
}

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

LayerProblem ConversionRun::problem_of(int64_t layer, const DecoderLayer& original, const at::Tensor& hidden) const {
  const auto index = static_cast<size_t>(layer);
  LayerProblem problem;
  problem.layer = layer;
  problem.source = in_.plan.source.layers[index];
  problem.target = target_.layers[index];
  problem.weights = original.grouped_query_attention().weights();
  problem.teacher = hidden;
  problem.windows = in_.calibration.roles;
  problem.attention_input = [&original](const at::Tensor& h) { return original.attention_input(h); };
  problem.attention_residual = [&original](const at::Tensor& out) { return original.attention_residual(out); };
  problem.output_bias_allowed = problem.target.output_bias;
  check_finite(problem, in_.source->family().attention_tensors(in_.plan.source, layer, problem.weights),
               in_.source->path());
  return problem;
}

void ConversionRun::solve_layer(int64_t layer, const DecoderLayer& original) const {
  LayerProblem problem = problem_of(layer, original, teacher_.hidden());
  problem.student = student_;
  problem.shared = shared_.get();
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
    const auto frequencies = reports_.back().find("rope_inv_freq");
    if (frequencies != reports_.back().end()) {
      target_.layers[static_cast<size_t>(layer)].rope_inv_freq = frequencies->get<std::vector<double>>();
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

namespace {

/// Lets every tensor of a mebibyte or more be mapped by itself, so that its pages go back to the system when it is freed.
/// Left to itself glibc raises that bound to 32 MiB after the first large tensors are freed, and the heap's holes make the
/// process grow with depth (by a tenth over 64 small layers).
void map_large_tensors() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

}  // namespace

bool ConversionRun::has_unsolved_layers() const {
  for (int64_t layer = 0; layer < in_.plan.source.n_layers; ++layer) {
    if (in_.plan.converted[static_cast<size_t>(layer)] && !in_.partial.has_layer(layer)) return true;
  }
  return false;
}

void ConversionRun::survey_layers() {
  const Transform& method = transform(in_.plan.recipe.method);
  if (!method.surveys(in_.plan.recipe) || !has_unsolved_layers()) return;
  const auto total = static_cast<uint64_t>(in_.plan.source.n_layers);
  Progress progress({.phase = "survey", .unit = "layers", .total = total, .index = 1, .count = in_.plan.phases()});
  LayerStream stream(in_.source, in_.calibration.windows, {.dtype = at::kFloat, .device = in_.device});
  std::vector<std::unique_ptr<LayerSurvey>> surveys;
  for (int64_t layer = 0; layer < in_.plan.source.n_layers; ++layer) {
    with_context(fmt::format("surveying layer {}", layer), [&] {
      const DecoderLayer original = stream.load_layer();
      if (in_.plan.converted[static_cast<size_t>(layer)]) {
        surveys.push_back(method.survey(problem_of(layer, original, stream.hidden()), in_.plan.recipe));
      }
      stream.advance(original);
    });
    progress.advance();
    check_interrupt(kInterruptHelp);
  }
  progress.finish();
  shared_ = method.choose(surveys, in_.plan.recipe);
}

void ConversionRun::run_layers() {
  map_large_tensors();
  survey_layers();
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
