#include "convert/runtime_verdicts.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/mixed_layers.h"

namespace cinch {
namespace {

std::string uniform_reason(const std::string& runtime, const ModelConfig& target) {
  const int64_t heads = target.layers.front().n_kv_heads;
  if (runtime == "hf") return fmt::format("stock class {} with num_key_value_heads {}", target.architecture, heads);
  if (runtime == "llama.cpp") return "same architecture as the source; `cinch export --format gguf` writes the file";
  std::string reason = fmt::format("same class and head size as the source ({})", target.architecture);
  return reason +
         fmt::format("; tensor parallelism over more than {} device{} repeats KV heads", heads, heads == 1 ? "" : "s");
}

}  // namespace

const std::vector<std::string>& known_runtimes() {
  static const std::vector<std::string> names = {"hf", "vllm", "sglang", "llama.cpp"};
  return names;
}

std::vector<RuntimeVerdict> runtime_verdicts(const ModelConfig& target) {
  const bool uniform = !layers_differ(target);
  const bool dynamic = std::any_of(target.layers.begin(), target.layers.end(),
                                   [](const AttentionSpec& layer) { return layer.rope.type == "dynamic"; });
  std::vector<RuntimeVerdict> verdicts;
  for (const std::string& runtime : known_runtimes()) {
    RuntimeVerdict verdict{runtime, true, "stock-class", {}};
    if (has_latent_layers(target)) {
      verdict.loads = false;
      verdict.rule = "latent-attention";
      verdict.reason = "a stock class of this family has no latent attention, so only cinch loads the result";
    } else if (!uniform) {
      verdict.loads = false;
      verdict.rule = "uniform-kv-heads";
      verdict.reason =
          "a stock class has one num_key_value_heads for all layers; these layers differ, so only cinch loads the "
          "result";
    } else if (runtime == "llama.cpp" && dynamic) {
      verdict.loads = false;
      verdict.rule = "rope-scaling";
      verdict.reason = "llama.cpp has no dynamic NTK RoPE scaling";
    } else {
      verdict.reason = uniform_reason(runtime, target);
    }
    verdicts.push_back(std::move(verdict));
  }
  return verdicts;
}

}  // namespace cinch
