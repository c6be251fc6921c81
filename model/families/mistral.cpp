#include "model/families/standard_family.h"

namespace cinch {
namespace {

/// Mistral 7B and descendants: Llama with an optional sliding window (transformers, modeling_mistral.py).
class MistralFamily : public StandardFamily {
 public:
  std::string name() const override { return "mistral"; }
  std::string architecture() const override { return "MistralForCausalLM"; }
  std::vector<std::string> model_types() const override { return {"mistral"}; }

 protected:
  FamilyDefaults defaults() const override {
    return {.n_kv_heads = 8, .max_position_embeddings = 4096 * 32, .window = 4096};
  }
  void specialise(const JsonObject& json, ModelConfig& config) const override {
    for (AttentionSpec& spec : config.layers) spec.window = parse_window(json, defaults().window);
  }
};

}  // namespace

const ModelFamily& mistral_family() {
  static const MistralFamily family;
  return family;
}

}  // namespace cinch
