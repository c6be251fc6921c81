#include <fmt/format.h>

#include "core/errors.h"
#include "model/families/standard_family.h"

namespace cinch {

const std::vector<const ModelFamily*>& model_families() {
  static const std::vector<const ModelFamily*> families = {&llama_family(),      &mistral_family(), &qwen2_family(),
                                                           &qwen3_family(),      &gemma2_family(),  &phi3_family(),
                                                           &deepseek_v3_family()};
  return families;
}

const ModelFamily& model_family(const std::string& name) {
  for (const ModelFamily* family : model_families()) {
    if (family->name() == name) return *family;
  }
  throw UnsupportedError(fmt::format("model family \"{}\" is not known", name));
}

const ModelFamily& family_of_config(const JsonObject& config) {
  const std::string type = config.string("model_type");
  std::vector<std::string> known;
  for (const ModelFamily* family : model_families()) {
    for (const std::string& name : family->model_types()) {
      if (name == type) return *family;
      known.push_back(name);
    }
  }
  const std::string near = nearest_word(type, known);
  throw UnsupportedError(fmt::format("{}: model_type \"{}\" is not supported{}", config.where("model_type"), type,
                                     near.empty() ? "" : fmt::format(" (the nearest is \"{}\")", near)),
                         fmt::format("supported: {}", fmt::join(known, ", ")));
}

int64_t ModelConfig::kv_elements() const {
  int64_t sum = 0;
  for (const AttentionSpec& spec : layers) sum += spec.kv_elements();
  return sum;
}

int64_t ModelConfig::kv_bytes_per_token(int bits) const { return kv_elements() * bits / 8; }

}  // namespace cinch
