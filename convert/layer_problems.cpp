#include "convert/layer_problems.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/allocator.h"
#include "core/errors.h"
#include "core/progress.h"
#include "model/decoder_model.h"

namespace cinch {
namespace {

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

LayerProblem layer_problem(const ModelSource& source, const AttentionSpec& target, const WindowRoles& windows,
                           int64_t layer, const DecoderLayer& original, const at::Tensor& hidden) {
  LayerProblem problem;
  problem.layer = layer;
  problem.source = source.config().layers.at(static_cast<size_t>(layer));
  problem.target = target;
  problem.weights = original.grouped_query_attention().weights();
  problem.teacher = hidden;
  problem.windows = windows;
  problem.attention_input = [&original](const at::Tensor& h) { return original.attention_input(h); };
  problem.attention_residual = [&original](const at::Tensor& out) { return original.attention_residual(out); };
  problem.output_bias_allowed = problem.target.output_bias;
  check_finite(problem, source.family().attention_tensors(source.config(), layer, problem.weights), source.path());
  return problem;
}

void with_surveyed_layer(const ModelSource& source, const AttentionSpec& target, int64_t layer,
                         const MomentFile& moments, const std::function<void(const LayerProblem&)>& use) {
  with_context(fmt::format("surveying layer {}", layer), [&] {
    const ModelConfig& config = source.config();
    const ModelFamily& family = source.family();
    const LatentMoments own = moments.load(layer);
    LayerProblem problem;
    problem.layer = layer;
    problem.source = config.layers.at(static_cast<size_t>(layer));
    problem.target = target;
    problem.weights = std::get<GroupedQueryWeights>(
        family.read_layer(config, layer, [&](const std::string& name) { return source.tensor(name, at::kFloat); })
            .attention);
    problem.teacher = at::empty({0, own.window, config.hidden_size}, at::kFloat);
    problem.moments = &own;
    use(problem);
    for (const WeightSpec& weight : family.weights(config)) {
      if (weight.layer == layer) source.tensors().release(weight.name);
    }
  });
}

void measure_moments(std::shared_ptr<ModelSource> source, const ConversionPlan& plan, const CalibrationSet& calibration,
                     const Json& identity, const std::filesystem::path& path, at::Device device) {
  const std::vector<int64_t>& layers = plan.recipe.layers;
  MomentWriter writer(path, identity, layers, plan.source.layers, static_cast<int64_t>(calibration.roles.fit.size()),
                      calibration.windows.size(1));
  const int64_t count = layers.back() + 1;
  Progress progress({.phase = "measure",
                     .unit = "layers",
                     .total = static_cast<uint64_t>(count),
                     .index = 1,
                     .count = plan.phases()});
  LayerStream stream(source, calibration.windows, {.dtype = at::kFloat, .device = device});
  for (int64_t layer = 0; layer < count; ++layer) {
    with_context(fmt::format("measuring layer {}", layer), [&] {
      const DecoderLayer original = stream.load_layer();
      if (plan.converted[static_cast<size_t>(layer)]) {
        const LayerProblem problem = layer_problem(*source, plan.target.layers[static_cast<size_t>(layer)],
                                                   calibration.roles, layer, original, stream.hidden());
        const SourceHeads heads = source_heads(problem);
        writer.store(layer, latent_moments(HeadStream(problem, heads), heads));
      }
      stream.advance(original);
    });
    return_freed_memory();
    progress.advance();
    check_interrupt("repeat the command: the moments are measured again");
  }
  writer.commit();
  progress.finish();
}

}  // namespace cinch
