#include "convert/conversion_plan.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attention/cache_precision.h"
#include "convert/converter.h"
#include "convert/plan_estimates.h"
#include "convert/transform.h"
#include "core/errors.h"
#include "model/mixed_layers.h"
#include "model/model_summary.h"

namespace cinch {
namespace {

constexpr double kQuantisingWinsAbove = 0.2;  // of the bytes; docs/conversion.md

std::string role_name(TensorRole role) { return role == TensorRole::kept ? "kept" : "derived"; }

ConversionRecipe resolve_recipe(const ModelConfig& config, ConversionRecipe recipe,
                                std::vector<std::string>& warnings) {
  check_recipe(recipe);
  recipe = with_target_defaults(std::move(recipe), config.max_position_embeddings);
  if (transform(recipe.method).makes() != recipe.target) {
    throw UsageError(fmt::format("--method {} does not lead to --to {}", recipe.method, target_text(recipe)),
                     fmt::format("leave the method out to take {}", default_method(recipe.target)));
  }
  if (!recipe.layers.empty() && recipe.layers.back() >= config.n_layers) {
    throw UsageError(
        fmt::format("--layers {}: the model's layers are 0 to {}", layers_text(recipe.layers), config.n_layers - 1));
  }
  if (recipe.layers.empty()) {
    for (int64_t layer = 0; layer < config.n_layers; ++layer) recipe.layers.push_back(layer);
  }
  if (recipe.calibration_window > config.max_position_embeddings) {
    warnings.push_back(fmt::format("calibration windows shortened from {} to {} tokens, the model's longest context",
                                   recipe.calibration_window, config.max_position_embeddings));
    recipe.calibration_window = config.max_position_embeddings;
  }
  if (recipe.calibration_window < kLeastWindow && transform(recipe.method).needs_calibration(recipe)) {
    throw UnsupportedError(fmt::format("--method {}: a calibration window has at least {} tokens, the model's longest "
                                       "context is {}",
                                       recipe.method, kLeastWindow, config.max_position_embeddings),
                           "take a method that needs no calibration: --method mean --no-refit");
  }
  return recipe;
}

/// What is wrong with the target for this layer, or empty. Sizes of latents are checked where they are chosen.
std::string fault_of(const AttentionSpec& layer, const ConversionRecipe& recipe) {
  const int64_t heads = recipe.n_kv_heads;
  if (layer.kind == AttentionKind::latent) return "latent attention already, which has no KV heads to merge";
  if (recipe.target == TargetKind::mla) return {};
  if (heads == layer.n_kv_heads) {
    return fmt::format("{} key-value heads already: the cache would not shrink", layer.n_kv_heads);
  }
  if (heads > layer.n_kv_heads) {
    return fmt::format("only {} key-value heads: {} would make the cache larger", layer.n_kv_heads, heads);
  }
  if (layer.n_kv_heads % heads != 0) {
    return fmt::format("{} key-value heads, which {} does not divide", layer.n_kv_heads, heads);
  }
  return {};
}

std::string smaller_targets(int64_t n_kv_heads) {
  std::string text;
  for (int64_t heads = n_kv_heads / 2; heads >= 2; --heads) {
    if (n_kv_heads % heads == 0) text += fmt::format("gqa:{}, ", heads);
  }
  return text + "mqa";
}

void check_targets(const ModelConfig& config, const ConversionRecipe& recipe) {
  for (const int64_t layer : recipe.layers) {
    const AttentionSpec& spec = config.layers[static_cast<size_t>(layer)];
    const std::string fault = fault_of(spec, recipe);
    if (fault.empty()) continue;
    const bool alike = !layers_differ(config);
    const std::string which = alike ? "the model has" : fmt::format("layer {} has", layer);
    const std::string help = spec.kind == AttentionKind::latent ? "start from the model it was converted from"
                             : spec.n_kv_heads == 1             ? "a single key-value head cannot be shared further"
                                                    : "possible here: --to " + smaller_targets(spec.n_kv_heads);
    throw UnsupportedError(fmt::format("--to {}: {} {}", target_text(recipe), which, fault), help);
  }
}

ModelConfig target_config(const ModelConfig& source, const ConversionRecipe& recipe,
                          std::vector<std::string>& warnings) {
  const Transform& method = transform(recipe.method);
  ModelConfig target = source;
  for (const int64_t layer : recipe.layers) {
    AttentionSpec& spec = target.layers[static_cast<size_t>(layer)];
    const AttentionSpec before = spec;
    spec = with_context(fmt::format("planning layer {}", layer), [&] { return method.target(before, recipe); });
    for (const std::string& caution : method.cautions(before, recipe)) {
      if (std::find(warnings.begin(), warnings.end(), caution) == warnings.end()) warnings.push_back(caution);
    }
  }
  return target;
}

/// The target with rotary frequencies of the kind that the conversion will choose, which it knows only later: what
/// runtimes can load depends on it.
ModelConfig with_expected_frequencies(ModelConfig target, const ConversionRecipe& recipe) {
  for (size_t layer = 0; layer < target.layers.size(); ++layer) {
    std::vector<double>& list = target.layers[layer].rope_inv_freq;
    const double own = recipe.slots == SlotRule::own ? 1.0 + static_cast<double>(layer) : 1.0;
    for (size_t slot = 0; slot < list.size(); ++slot) {
      const auto s = static_cast<double>(slot);
      list[slot] = recipe.slots == SlotRule::geometric ? std::exp(-s) : 0.5 / (own + s * s);
    }
  }
  return target;
}

void check_format(const ModelConfig& target, const ModelWriterOptions& output) {
  const std::string runtime = output.format == "gguf" ? "llama.cpp" : output.runtime;
  if (!runtime.empty()) require_runtime(target, runtime, output.approximate);
  if (has_latent_layers(target)) return check_holds_layers(target, output.format);
  if (!layers_differ(target) || output.format == "hdf5" || output.format == "native") return;
  throw UnsupportedError(
      fmt::format(
          "--layers: format {} holds stock model classes, which have one number of key-value heads for all layers",
          output.format),
      "convert every layer, or keep the result for cinch alone with --for native");
}

int64_t count_parameters(const std::vector<WeightSpec>& weights) {
  int64_t total = 0;
  for (const WeightSpec& weight : weights) {
    int64_t count = 1;
    for (const int64_t size : weight.shape) count *= size;
    total += count;
  }
  return total;
}

/// The cache precision that the target is made for, and what it will take then.
void plan_precision(ConversionPlan& plan) {
  const Transform& method = transform(plan.recipe.method);
  double bytes = 0;
  for (size_t layer = 0; layer < plan.source.layers.size(); ++layer) {
    const int bits = plan.converted[layer] ? method.planned_bits(plan.source.layers[layer], plan.recipe) : 16;
    if (plan.converted[layer]) plan.kv_bits = bits;
    bytes += packed_bytes_per_token(plan.target.layers[layer], {.bits = bits});
  }
  plan.planned_kv_ratio = bytes / static_cast<double>(plan.source.kv_bytes_per_token());
  if (plan.recipe.target == TargetKind::mla && plan.planned_kv_ratio > kQuantisingWinsAbove) {
    plan.warnings.push_back(fmt::format(
        "above about {:.0f} % of the bytes, quantising the source's cache to 4 bits ({:.0f} %) has been measured to "
        "lose less than a conversion without training; a conversion pays below that, or where the runtime cannot "
        "quantise",
        100 * kQuantisingWinsAbove, 100 * CachePrecision{.bits = 4}.bits_per_number() / 16));
  }
}

}  // namespace

ConversionPlan plan_conversion(const ModelSource& source, const ConversionRecipe& recipe,
                               const ModelWriterOptions& output) {
  ConversionPlan plan;
  plan.source = source.config();
  plan.recipe = resolve_recipe(plan.source, recipe, plan.warnings);
  if (!source.quality_note().empty()) plan.warnings.push_back(source.quality_note());
  check_targets(plan.source, plan.recipe);
  plan.target = target_config(plan.source, plan.recipe, plan.warnings);
  const ModelConfig expected = with_expected_frequencies(plan.target, plan.recipe);
  check_format(expected, output);

  plan.converted.assign(static_cast<size_t>(plan.source.n_layers), false);
  for (const int64_t layer : plan.recipe.layers) plan.converted[static_cast<size_t>(layer)] = true;
  const std::vector<WeightSpec> weights = source.family().weights(plan.target);
  for (const WeightSpec& weight : weights) {
    const bool derived = weight.attention && plan.converted[static_cast<size_t>(weight.layer)];
    plan.tensors.push_back({weight.name, weight.shape, derived ? TensorRole::derived : TensorRole::kept});
  }
  plan.source_parameters = count_parameters(source.family().weights(plan.source));
  plan.target_parameters = count_parameters(weights);
  plan.kv_ratio = static_cast<double>(plan.target.kv_elements()) / static_cast<double>(plan.source.kv_elements());
  plan_precision(plan);
  plan.runtimes = runtime_verdicts(expected);
  estimate_costs(source, output, at::get_num_threads(), plan);
  return plan;
}

int ConversionPlan::phases() const { return transform(recipe.method).uses_moments(recipe) ? 4 : 3; }

Json ConversionPlan::to_json() const {
  Json runtime_list = Json::array(), tensor_list = Json::array();
  for (const RuntimeVerdict& verdict : runtimes) {
    runtime_list.push_back({{"name", verdict.name},
                            {"loads", verdict.loads},
                            {"rule", verdict.rule},
                            {"reason", verdict.reason},
                            {"way_out", verdict.way_out}});
  }
  for (const PlannedTensor& tensor : tensors) {
    tensor_list.push_back({{"name", tensor.name}, {"shape", tensor.shape}, {"role", role_name(tensor.role)}});
  }
  return {{"recipe", recipe_json(recipe)},
          {"source", model_summary(source, source_parameters)},
          {"target", model_summary(target, target_parameters)},
          {"kv_ratio", kv_ratio},
          {"kv_bits", kv_bits},
          {"planned_kv_ratio", planned_kv_ratio},
          {"peak_memory_bytes", peak_memory_bytes},
          {"disk_bytes", disk_bytes},
          {"seconds_estimate", seconds_estimate},
          {"break_even_tokens", break_even_tokens},
          {"runtimes", runtime_list},
          {"warnings", warnings},
          {"tensors", tensor_list}};
}

}  // namespace cinch
