// A model family: reads and writes config.json, names every weight, and maps stored tensors to LayerWeights and back.
// One file per family under families/, one line in family_list.cpp.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/layer_weights.h"
#include "model/model_config.h"

namespace cinch {

/// One tensor that a checkpoint of this family holds.
struct WeightSpec {
  std::string name;  // Hugging Face name
  std::vector<int64_t> shape;
  int64_t layer = -1;      // -1: embedding, final norm, head
  bool attention = false;  // belongs to the attention of `layer` (what a conversion replaces)
};

using NamedTensors = std::map<std::string, at::Tensor>;
/// Gives the tensor of that Hugging Face name in the dtype the caller wants.
using TensorReader = std::function<at::Tensor(const std::string&)>;

class ModelFamily {
 public:
  virtual ~ModelFamily() = default;
  virtual std::string name() const = 0;                      // "llama"
  virtual std::string architecture() const = 0;              // Hugging Face class, "LlamaForCausalLM"
  virtual std::vector<std::string> model_types() const = 0;  // config.json model_type values
  /// What the Hugging Face class has; layers of the other kind make the model one that only cinch loads.
  virtual AttentionKind attention_kind() const { return AttentionKind::grouped_query; }
  /// Throws ConfigError / UnsupportedError naming the key. Unknown keys are carried, known ones that change the
  /// function are honoured.
  virtual ModelConfig parse(const JsonObject& config) const = 0;
  /// config.json for a model of the same class with `config`'s sizes; starts from config.source.
  virtual Json to_json(const ModelConfig& config) const = 0;
  /// Every tensor, in file order.
  virtual std::vector<WeightSpec> weights(const ModelConfig& config) const = 0;
  /// Names of the tensors outside the layers; the same in every family so far.
  virtual std::string embedding_name() const { return "model.embed_tokens.weight"; }
  virtual std::string head_name() const { return "lm_head.weight"; }
  virtual std::string final_norm_name() const { return "model.norm.weight"; }
  virtual LayerWeights read_layer(const ModelConfig& config, int64_t layer, const TensorReader& read) const = 0;
  /// The attention tensors of a layer under their stored names (fused again where the family fuses).
  virtual NamedTensors attention_tensors(const ModelConfig& config, int64_t layer,
                                         const AttentionWeights& weights) const = 0;
};

const std::vector<const ModelFamily*>& model_families();
const ModelFamily& model_family(const std::string& name);
/// By model_type. Throws UnsupportedError naming the nearest known one.
const ModelFamily& family_of_config(const JsonObject& config);

}  // namespace cinch
