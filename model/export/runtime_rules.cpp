#include "model/export/runtime_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/errors.h"
#include "model/export/rotary_form.h"
#include "model/gguf/gguf_mapping.h"
#include "model/gguf/gguf_rope.h"
#include "model/mixed_layers.h"
#include "model/model_family.h"

namespace cinch {
namespace {

constexpr double kStockLatentEps = 1e-6;  // of the norm on the latent where rms_norm_eps does not count

const AttentionSpec& first(const ModelConfig& model) { return model.layers.front(); }
bool is_latent(const ModelConfig& model) { return first(model).kind == AttentionKind::latent; }
/// Already in the terms of the class.
bool is_stock_latent(const ModelConfig& model) {
  return model_family(model.family).attention_kind() == AttentionKind::latent;
}
bool slides(const ModelConfig& model, const AttentionSpec& spec) {
  return spec.window > 0 && spec.window < model.max_position_embeddings;
}
RotaryForm rotary_form(const ModelConfig& model) {
  return form_of(rotary_entry(first(model).rope_inv_freq, model.max_position_embeddings));
}
/// Any layer of which `test` holds.
template <typename Test>
bool any_layer(const ModelConfig& model, Test test) {
  return std::any_of(model.layers.begin(), model.layers.end(), test);
}
template <typename Field>
bool layers_differ_in(const ModelConfig& model, Field field) {
  return any_layer(model, [&](const AttentionSpec& spec) { return field(spec) != field(first(model)); });
}

// Every runtime: one class for all layers.

std::string kinds_differ(const ModelConfig& model) {
  if (!layers_differ_in(model, [](const AttentionSpec& spec) { return spec.kind; })) return {};
  return "some of its layers have latent attention and others not";
}
std::string kv_heads_differ(const ModelConfig& model) {
  if (is_latent(model) || !layers_differ_in(model, [](const AttentionSpec& spec) { return spec.n_kv_heads; }))
    return {};
  return "a stock class has one num_key_value_heads for all layers; these layers differ";
}
std::string head_sizes_differ(const ModelConfig& model) {
  if (!is_latent(model)) return {};
  const auto sizes = [](const AttentionSpec& spec) {
    return std::tuple(spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.v_head_dim, spec.scale);
  };
  return layers_differ_in(model, sizes) ? "its layers have heads of different sizes" : "";
}
std::string frequencies_differ(const ModelConfig& model) {
  if (!is_latent(model) || !layers_differ_in(model, [](const AttentionSpec& spec) { return spec.rope_inv_freq; })) {
    return {};
  }
  return "a stock class has one table of rotary frequencies; these layers have their own";
}
std::string latent_post_norms(const ModelConfig& model) {
  return is_latent(model) && model.sandwich_norms ? "the stock latent class has no norms after attention and MLP" : "";
}
std::string latent_soft_caps(const ModelConfig& model) {
  if (!is_latent(model)) return {};
  const bool capped = any_layer(model, [](const AttentionSpec& spec) { return spec.softcap > 0; });
  return capped || model.final_logit_softcap > 0 ? "the stock latent class has no soft caps" : "";
}
std::string latent_qk_norm(const ModelConfig& model) {
  if (!is_latent(model) || !any_layer(model, [](const AttentionSpec& spec) { return spec.key_scale_tail; })) return {};
  return "QK-norm needs the scale of each key beside the latent, which the stock latent class does not cache";
}
std::string latent_window(const ModelConfig& model) {
  if (!is_latent(model)) return {};
  for (const AttentionSpec& spec : model.layers) {
    if (slides(model, spec))
      return fmt::format("the stock latent class has no sliding window, here of {} tokens", spec.window);
  }
  return {};
}
std::string latent_query_bias(const ModelConfig& model) {
  if (!is_latent(model) || !any_layer(model, [](const AttentionSpec& spec) { return spec.qkv_bias; })) return {};
  return "the stock latent class has no biases of queries";
}
std::string latent_mlp_bias(const ModelConfig& model) {
  return is_latent(model) && model.mlp_bias ? "the stock latent class has no biases in its MLP" : "";
}

// llama.cpp.

std::string frequency_table(const ModelConfig& model) {
  if (!is_latent(model) || rotary_form(model) != RotaryForm::explicit_) return {};
  return "deepseek2 computes its rotary frequencies from one base and one factor; these are a list of their own";
}
std::string fast_linear(const ModelConfig& model) {
  const bool fast = is_latent(model) && rotary_form(model) == RotaryForm::linear && first(model).rope_inv_freq[0] > 1;
  return fast ? "deepseek2 has no rotary frequencies above one radian per token" : "";
}
std::string llama_cpp_activation(const ModelConfig& model) {
  const Activation known = model.family == "gemma2" && !is_latent(model) ? Activation::gelu_tanh : Activation::silu;
  return model.activation != known ? "its MLP has another activation than llama.cpp's architecture" : "";
}
std::string llama_cpp_biases(const ModelConfig& model) {
  if (is_latent(model) || gguf_architecture(model) == "llama") return {};
  const bool extra = first(model).output_bias || model.mlp_bias || (first(model).qkv_bias && model.family != "qwen2");
  return extra ? fmt::format("architecture {} has no biases there", gguf_architecture(model)) : "";
}
std::string ignored_window(const ModelConfig& model) {
  if (is_latent(model) || model.family == "gemma2") return {};
  for (const AttentionSpec& spec : model.layers) {
    if (slides(model, spec)) return fmt::format("its sliding window of {} tokens would be ignored", spec.window);
  }
  return {};
}
bool is_gemma2(const ModelConfig& model) { return model.family == "gemma2" && !is_latent(model); }
std::string gemma2_scale(const ModelConfig& model) {
  if (!is_gemma2(model)) return {};
  const int64_t scalar = gemma2_attention_scalar(model);
  const double scale = first(model).scale;
  if (std::abs(scale * std::sqrt(static_cast<double>(scalar)) - 1) <= 1e-6) return {};
  return fmt::format("its query_pre_attn_scalar is {:.6g}, llama.cpp takes {}", 1 / (scale * scale), scalar);
}
std::string gemma2_pattern(const ModelConfig& model) {
  if (!is_gemma2(model)) return {};
  for (size_t layer = 0; layer < model.layers.size(); ++layer) {
    if ((model.layers[layer].window > 0) != (layer % 2 == 0)) return "its sliding layers are not every second one";
  }
  return {};
}
std::string gemma2_soft_caps(const ModelConfig& model) {
  const bool off = is_gemma2(model) && (first(model).softcap <= 0 || model.final_logit_softcap <= 0);
  return off ? "a soft cap is switched off" : "";
}
std::string llama_cpp_rope(const ModelConfig& model) { return is_latent(model) ? "" : gguf_rope_obstacle(model); }
std::string one_eps(const ModelConfig& model) {
  if (!is_stock_latent(model) || first(model).latent_norm_eps == model.rms_norm_eps) return {};
  return fmt::format(
      "deepseek2 has one epsilon for all norms; this model was written for {:g} on the latent and {:g} "
      "elsewhere",
      first(model).latent_norm_eps, model.rms_norm_eps);
}
std::string stock_latent_biases(const ModelConfig& model) {
  const AttentionSpec& spec = first(model);
  return is_latent(model) && (spec.down_bias || spec.output_bias) ? "the runtime has no biases in latent attention"
                                                                  : "";
}

// vLLM and SGLang.

std::string vllm_cache_width(const ModelConfig& model) {
  if (!is_latent(model)) return {};
  int64_t rank = 0;
  for (const AttentionSpec& spec : model.layers) rank = std::max(rank, spec.kv_lora_rank);
  const int64_t width = rank + first(model).qk_rope_head_dim;
  if (width == 576 || width == 320) return {};
  return fmt::format("its kernels take 576 or 320 cached numbers per token and layer, this model has {} + {} = {}",
                     rank, first(model).qk_rope_head_dim, width);
}
std::string served_frequency_table(const ModelConfig& model) {
  if (!is_latent(model) || rotary_form(model) == RotaryForm::base) return {};
  return "it takes every rope_scaling of this class for YaRN; only frequencies of one base are safe";
}
std::string served_activation(const ModelConfig& model) {
  return is_latent(model) && model.activation != Activation::silu ? "its latent class has SiLU only" : "";
}
std::string served_eps(const ModelConfig& model) {
  if (!is_stock_latent(model) || model.rms_norm_eps == kStockLatentEps) return {};
  return fmt::format("it applies rms_norm_eps, here {:g}, to the latent too, which was written for {:g}",
                     model.rms_norm_eps, kStockLatentEps);
}
std::string served_tie(const ModelConfig& model) {
  return is_stock_latent(model) && model.tie_word_embeddings ? "its latent class does not tie the head" : "";
}

constexpr const char* kRun = "transformers 4.57.6 and 5.23.0, llama.cpp of llama-cpp-python 0.3.36, run";
constexpr const char* kLlama = "llama.cpp of llama-cpp-python 0.3.36, run";
constexpr const char* kVllm = "vLLM of November 2026, source read, not run";
constexpr const char* kSglang = "SGLang of November 2026, source read, not run";
constexpr const char* kCinchOnly = "keep it in cinch (--format native or hdf5)";
constexpr const char* kGeometric = "convert with --slots geometric";

}  // namespace

const std::vector<std::string>& known_runtimes() {
  static const std::vector<std::string> names = {"hf", "vllm", "sglang", "llama.cpp"};
  return names;
}

const std::vector<RuntimeRule>& runtime_rules() {
  static const std::vector<RuntimeRule> rules = {
      {"stock/one-kind", "", kRun, false, kinds_differ,
       "convert all layers, or keep it in cinch (--format native or hdf5)"},
      {"stock/kv-heads", "", kRun, false, kv_heads_differ,
       "convert all layers alike, or keep it in cinch (--format native or hdf5)"},
      {"stock/head-sizes", "", kRun, false, head_sizes_differ, "convert all layers with one --rope-dim"},
      {"stock/shared-frequencies", "", kRun, false, frequencies_differ, "convert with --slots shared or geometric"},
      {"stock/post-norms", "", kRun, false, latent_post_norms, "convert to fewer heads (gqa:N, mqa) instead"},
      {"stock/qk-norm", "", kRun, false, latent_qk_norm, kCinchOnly},
      {"stock/soft-caps", "", kRun, true, latent_soft_caps, kCinchOnly},
      {"stock/window", "", kRun, true, latent_window, "convert to fewer heads (gqa:N, mqa), which keep the window"},
      {"stock/query-bias", "", kRun, true, latent_query_bias, "convert to fewer heads (gqa:N, mqa), which keep biases"},
      {"stock/mlp-bias", "", kRun, true, latent_mlp_bias, "convert to fewer heads (gqa:N, mqa), which keep biases"},
      {"llama.cpp/frequency-table", "llama.cpp", kLlama, false, frequency_table, kGeometric},
      {"llama.cpp/fast-linear", "llama.cpp", kLlama, false, fast_linear, kGeometric},
      {"llama.cpp/one-eps", "llama.cpp", kLlama, false, one_eps, "export from the folder that cinch convert wrote"},
      {"llama.cpp/latent-biases", "llama.cpp", kLlama, true, stock_latent_biases, "export to hf"},
      {"llama.cpp/activation", "llama.cpp", kLlama, false, llama_cpp_activation, "export to hf"},
      {"llama.cpp/biases", "llama.cpp", kLlama, false, llama_cpp_biases, "export to hf"},
      {"llama.cpp/window", "llama.cpp", kLlama, true, ignored_window,
       "export to hf, or serve contexts within the window and give --allow-approximate"},
      {"llama.cpp/gemma2-scale", "llama.cpp", kLlama, true, gemma2_scale, "export to hf"},
      {"llama.cpp/gemma2-pattern", "llama.cpp", kLlama, false, gemma2_pattern, "export to hf"},
      {"llama.cpp/gemma2-soft-caps", "llama.cpp", kLlama, false, gemma2_soft_caps, "export to hf"},
      {"llama.cpp/rope-scaling", "llama.cpp", kLlama, false, llama_cpp_rope, "export to hf"},
      {"vllm/cache-width", "vllm", kVllm, false, vllm_cache_width,
       "pad the latent (export --pad-rank), use SGLang, or convert to gqa:N or mqa"},
      {"vllm/frequency-table", "vllm", kVllm, false, served_frequency_table, kGeometric},
      {"vllm/latent-biases", "vllm", kVllm, true, stock_latent_biases, "use transformers"},
      {"vllm/activation", "vllm", kVllm, false, served_activation, "use transformers"},
      {"vllm/latent-eps", "vllm", kVllm, false, served_eps, "export again with --runtime vllm"},
      {"vllm/tied-head", "vllm", kVllm, false, served_tie, "export again with --runtime vllm"},
      {"sglang/frequency-table", "sglang", kSglang, false, served_frequency_table, kGeometric},
      {"sglang/latent-biases", "sglang", kSglang, true, stock_latent_biases, "use transformers"},
      {"sglang/activation", "sglang", kSglang, false, served_activation, "use transformers"},
      {"sglang/latent-eps", "sglang", kSglang, false, served_eps, "export again with --runtime sglang"},
      {"sglang/tied-head", "sglang", kSglang, false, served_tie, "export again with --runtime sglang"},
  };
  return rules;
}

std::vector<BrokenRule> broken_rules(const ModelConfig& model, const std::string& runtime) {
  std::vector<BrokenRule> broken;
  for (const RuntimeRule& rule : runtime_rules()) {
    if (*rule.runtime != '\0' && runtime != rule.runtime) continue;
    std::string obstacle = rule.obstacle(model);
    if (!obstacle.empty()) broken.push_back({&rule, std::move(obstacle)});
  }
  return broken;
}

namespace {

std::string held_as(const ModelConfig& model, const std::string& runtime) {
  if (is_latent(model)) {
    if (runtime == "llama.cpp") return "as deepseek2: `cinch export --format gguf`";
    return fmt::format("as DeepseekV3ForCausalLM: `cinch export --runtime {}`", runtime);
  }
  const int64_t heads = first(model).n_kv_heads;
  if (runtime == "hf") return fmt::format("stock class {} with num_key_value_heads {}", model.architecture, heads);
  if (runtime == "llama.cpp") return "same architecture as the source; `cinch export --format gguf` writes the file";
  return fmt::format(
      "same class and head size as the source ({}); tensor parallelism over more than {} device{} repeats KV heads",
      model.architecture, heads, heads == 1 ? "" : "s");
}

}  // namespace

std::vector<RuntimeVerdict> runtime_verdicts(const ModelConfig& model) {
  std::vector<RuntimeVerdict> verdicts;
  for (const std::string& runtime : known_runtimes()) {
    const std::vector<BrokenRule> broken = broken_rules(model, runtime);
    if (broken.empty()) {
      verdicts.push_back(
          {runtime, true, is_latent(model) ? "stock-latent" : "stock-class", held_as(model, runtime), ""});
    } else {
      verdicts.push_back({runtime, false, broken[0].rule->id, broken[0].obstacle, broken[0].rule->way_out});
    }
  }
  return verdicts;
}

std::vector<BrokenRule> require_runtime(const ModelConfig& model, const std::string& runtime, bool approximate) {
  std::vector<BrokenRule> broken = broken_rules(model, runtime), fatal;
  std::copy_if(broken.begin(), broken.end(), std::back_inserter(fatal),
               [&](const BrokenRule& entry) { return !approximate || !entry.rule->approximable; });
  if (fatal.empty()) return broken;
  std::string message = fmt::format("{} cannot run this model as it is:", runtime);
  for (const BrokenRule& entry : fatal) message += fmt::format("\n  [{}] {}", entry.rule->id, entry.obstacle);
  std::string help = fatal.front().rule->way_out;
  const bool could = !approximate && std::all_of(fatal.begin(), fatal.end(),
                                                 [](const BrokenRule& entry) { return entry.rule->approximable; });
  if (could) help += "; or give --allow-approximate to leave it out, with the error measured";
  throw UnsupportedError(message, help);
}

}  // namespace cinch
