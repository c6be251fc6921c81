#include "src/kernel_report.h"

#include <fmt/format.h>

#include <vector>

#include "attention/decode/step_shape.h"
#include "attention/kernel_probe.h"
#include "attention/kernels/decode/decode_functions.h"

namespace cinch {
namespace {

struct Work {
  const char* name;
  int64_t queries, keys;
  bool recorded;
};

/// Long enough that no kernel is chosen for want of tokens, short enough to ask with real tensors.
constexpr int64_t kTokens = 2048;
constexpr Work kWorks[] = {{"training", kTokens, kTokens, true},
                           {"prompt", kTokens, kTokens, false},
                           {"prompt, later part", kTokens / 4, kTokens, false},
                           {"next token", 1, kTokens, false}};

/// Without what no kernel looks at.
AttentionSpec shape_of(AttentionSpec spec) {
  spec.rope = {};
  spec.rope_inv_freq = {};
  return spec;
}

std::string attention_text(const AttentionSpec& spec) {
  std::string text = spec.kind == AttentionKind::latent
                         ? fmt::format("{} heads, latent {} + rotary {}, values {}", spec.n_heads, spec.kv_lora_rank,
                                       spec.qk_rope_head_dim, spec.v_head_dim)
                         : fmt::format("{} heads on {} KV heads of {}", spec.n_heads, spec.n_kv_heads, spec.head_dim);
  if (spec.window > 0) text += fmt::format(", window {}", spec.window);
  if (spec.softcap > 0) text += ", soft cap";
  if (spec.key_scale_tail) text += ", key scales";
  return text;
}

/// A decode kernel takes the next token where there is one; what attends without it comes after.
void add_decode_kernel(const AttentionSpec& spec, const KernelQuestion& question, Json& work) {
  const bool latent = spec.kind == AttentionKind::latent;
  const StepRequest request{.dtype = question.dtype,
                            .format = latent ? question.cache_format : CacheFormat::sixteen_bit,
                            .kernel = DecodeKernel::automatic,
                            .tried_on = question.device};
  const DecodeFunctions* functions = question.device.is_cuda() ? plugin_decode_functions() : nullptr;
  const DecodeChoice choice = find_decode_kernel(spec, request, functions).choice;
  if (choice.kernel == DecodeKernel::attend) {
    work["cannot"]["mma, sm90"] = "cannot run: " + choice.why;
    return;
  }
  work["cannot"][work["kernel"].get<std::string>()] = "takes layers that no decode kernel covers";
  work["kernel"] = name_of(choice.kernel);
  if (!choice.why.empty()) work["cannot"]["sm90"] = "cannot run: " + choice.why;
}

Json verdicts_of(const AttentionSpec& spec, const Work& work, const KernelQuestion& question) {
  const AttentionRequest request = probe_request(spec, {.queries = work.queries,
                                                        .keys = work.keys,
                                                        .dtype = question.dtype,
                                                        .device = question.device,
                                                        .recorded = work.recorded});
  Json json = {{"work", work.name}, {"queries", work.queries}, {"keys", work.keys}, {"cannot", Json::object()}};
  for (const KernelVerdict& verdict : explain_dispatch(request)) {
    if (verdict.runs) json["kernel"] = verdict.kernel;
    if (!verdict.why_not.empty()) json["cannot"][verdict.kernel] = verdict.why_not;
  }
  if (work.queries == 1) add_decode_kernel(spec, question, json);
  return json;
}

}  // namespace

Json kernel_report(const ModelConfig& config, const KernelQuestion& question) {
  Json report = Json::array();
  for (size_t begin = 0; begin < config.layers.size();) {
    const AttentionSpec spec = shape_of(config.layers[begin]);
    size_t end = begin + 1;
    while (end < config.layers.size() && shape_of(config.layers[end]) == spec) ++end;
    Json works = Json::array();
    for (const Work& work : kWorks) works.push_back(verdicts_of(spec, work, question));
    report.push_back({{"layers", end == begin + 1 ? std::to_string(begin) : fmt::format("{}-{}", begin, end - 1)},
                      {"attention", attention_text(spec)},
                      {"works", works}});
    begin = end;
  }
  return report;
}

std::string kernel_report_text(const Json& report) {
  std::string text;
  for (const Json& layers : report) {
    text += fmt::format("layers {}: {}\n", layers["layers"].get<std::string>(), layers["attention"].get<std::string>());
    for (const Json& work : layers["works"]) {
      std::string others;
      for (const auto& [kernel, missing] : work["cannot"].items()) {
        others += fmt::format("{}{} {}", others.empty() ? "" : "; ", kernel, missing.get<std::string>());
      }
      text += fmt::format("  {:<18}  {}\n", work["work"].get<std::string>(), work["kernel"].get<std::string>());
      if (!others.empty()) text += fmt::format("  {:<18}  {}\n", "", others);
    }
  }
  return text;
}

}  // namespace cinch
