#include "src/bench_models.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "convert/transform.h"
#include "core/errors.h"
#include "eval/bench/random_model.h"
#include "model/config_source.h"
#include "src/model_argument.h"

namespace cinch {
namespace {

struct Shape {
  const char* name;
  const char* config;  // what config.json says of sizes
};

constexpr std::array kShapes = {
    Shape{"llama-3-8b", R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
      "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
      "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
      "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "hidden_act": "silu", "torch_dtype": "bfloat16"})"},
    Shape{"llama-2-7b", R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
      "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
      "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 4096, "rope_theta": 10000.0,
      "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "hidden_act": "silu", "torch_dtype": "bfloat16"})"},
    Shape{"smollm2-135m", R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576,
      "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
      "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0,
      "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "bfloat16"})"}};

std::shared_ptr<ModelSource> shape_model(const std::string& name) {
  for (const Shape& shape : kShapes) {
    if (shape.name != name) continue;
    const JsonObject json(parse_json(shape.config, name), name);
    return config_model(name, family_of_config(json).parse(json));
  }
  const std::vector<std::string> names = shape_names();
  const std::string nearest = nearest_word(name, names);
  throw UsageError(
      fmt::format("--shape: unknown shape \"{}\"; known: {}", name, fmt::join(names, ", ")),
      nearest.empty() ? "--random-weights takes any config.json" : fmt::format("did you mean {}?", nearest));
}

/// Frequencies of a latent's slots, which a conversion would choose: a rotary key's usual ones.
void turn(AttentionSpec& spec) {
  const double width = static_cast<double>(spec.qk_rope_head_dim);
  for (size_t i = 0; i < spec.rope_inv_freq.size(); ++i)
    spec.rope_inv_freq[i] = std::pow(spec.rope.theta, -2.0 * static_cast<double>(i) / width);
}

ConversionRecipe recipe_of(const std::string& target, const BenchModelWish& wish) {
  ConversionRecipe recipe;
  parse_target(target, recipe);
  if (recipe.target == TargetKind::mla) {
    if (wish.rank == 0 || wish.rope_dim < 0)
      throw UsageError("--to mla needs --rank and --rope-dim", "for example --rank 128 --rope-dim 64");
    recipe.rank = wish.rank;
    recipe.rope_dim = wish.rope_dim;
  }
  recipe.method = default_method(recipe.target);
  return recipe;
}

/// The sizes that a conversion would give the model; nothing is solved.
BenchModel converted(const BenchModel& model, const std::string& target, const BenchModelWish& wish) {
  const ConversionRecipe recipe = recipe_of(target, wish);
  ModelConfig config = model.source->config();
  for (AttentionSpec& layer : config.layers) {
    layer = transform(recipe.method).target(layer, recipe);
    if (layer.kind == AttentionKind::latent) turn(layer);
  }
  const std::string size =
      recipe.target == TargetKind::mla ? fmt::format(" {}+{}", recipe.rank, recipe.rope_dim) : std::string();
  const std::string name = fmt::format("{} {}{}", model.name, target, size);
  return {.name = name, .source = config_model(name, std::move(config)), .random_weights = true};
}

/// A folder's or file's config, without its weights.
std::shared_ptr<ModelSource> config_of(const std::string& path) {
  std::error_code fault;
  if (std::filesystem::path(path).extension() != ".json") {
    const std::filesystem::path file = std::filesystem::path(path) / "config.json";
    if (std::filesystem::exists(file, fault)) return open_config(file);
    return open_model(path, "MODEL");
  }
  if (!std::filesystem::exists(path, fault)) throw UsageError(fmt::format("MODEL: no such file: {}", path));
  return open_config(path);
}

void check(const BenchModelWish& wish) {
  if (wish.models.empty() && wish.shapes.empty()) {
    throw UsageError("`cinch bench decode` needs a MODEL or --shape",
                     fmt::format("for example --shape {} --to mla --rank 128 --rope-dim 64", kShapes.front().name));
  }
  const bool latent = std::find(wish.targets.begin(), wish.targets.end(), "mla") != wish.targets.end();
  if (!latent && (wish.rank != 0 || wish.rope_dim >= 0))
    throw UsageError("--rank and --rope-dim are of --to mla", "add --to mla, or leave them out");
  if (!wish.targets.empty() && !wish.models.empty() && !wish.random_weights) {
    throw UsageError("--to makes models of random weights",
                     "add --random-weights, or convert the model and name both folders");
  }
}

}  // namespace

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

std::vector<BenchModel> bench_models_of(const BenchModelWish& wish) {
  check(wish);
  std::vector<BenchModel> originals;
  for (const std::string& shape : wish.shapes)
    originals.push_back({.name = shape, .source = shape_model(shape), .random_weights = true});
  for (const std::string& path : wish.models) {
    originals.push_back({.name = path,
                         .source = wish.random_weights ? config_of(path) : open_model(path, "MODEL"),
                         .random_weights = wish.random_weights});
  }
  std::vector<BenchModel> models;
  for (const BenchModel& original : originals) {
    models.push_back(original);
    for (const std::string& target : wish.targets) {
      models.push_back(with_context(fmt::format("sizing {} as {}", original.name, target),
                                    [&] { return converted(original, target, wish); }));
    }
  }
  return models;
}

}  // namespace cinch
