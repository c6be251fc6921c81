#include "model/families/standard_family.h"

namespace cinch {
namespace {

/// Llama 1 to 3, SmolLM2, TinyLlama (transformers, modeling_llama.py).
class LlamaFamily : public StandardFamily {
 public:
  std::string name() const override { return "llama"; }
  std::string architecture() const override { return "LlamaForCausalLM"; }
  std::vector<std::string> model_types() const override { return {"llama"}; }

 protected:
  void specialise(const JsonObject& json, ModelConfig& config) const override {
    const bool bias = json.boolean_or("attention_bias", false);
    config.mlp_bias = json.boolean_or("mlp_bias", false);
    for (AttentionSpec& spec : config.layers) spec.qkv_bias = spec.output_bias = bias;
  }
};

}  // namespace

const ModelFamily& llama_family() {
  static const LlamaFamily family;
  return family;
}

}  // namespace cinch
