#include "src/plan_output.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/model_summary.h"
#include "src/output.h"

namespace cinch {
namespace {

std::string bytes_at(const ModelConfig& config, int64_t tokens) {
  return human_bytes(static_cast<uint64_t>(kv_bytes_at(config, tokens)));
}

std::string size_table(const ConversionPlan& plan) {
  const ModelConfig &source = plan.source, &target = plan.target;
  return format_table({{"", "source", "target"},
                       {"KV heads per layer", kv_heads_text(source), kv_heads_text(target)},
                       {"KV bytes per token (16 bits)", std::to_string(source.kv_bytes_per_token()),
                        std::to_string(target.kv_bytes_per_token())},
                       {"cache at 4k tokens", bytes_at(source, 4096), bytes_at(target, 4096)},
                       {"cache at 32k tokens", bytes_at(source, 32768), bytes_at(target, 32768)},
                       {"cache at 128k tokens", bytes_at(source, 131072), bytes_at(target, 131072)},
                       {"parameters", human_count(static_cast<uint64_t>(plan.source_parameters)),
                        human_count(static_cast<uint64_t>(plan.target_parameters))}});
}

std::string seconds_text(double seconds) {
  if (seconds < 90) return fmt::format("{:.0f} s", std::max(seconds, 1.0));
  return seconds < 5400 ? fmt::format("{:.0f} min", seconds / 60) : fmt::format("{:.1f} h", seconds / 3600);
}

}  // namespace

std::string plan_text(const ConversionPlan& plan) {
  const auto derived = std::count_if(plan.tensors.begin(), plan.tensors.end(),
                                     [](const PlannedTensor& t) { return t.role == TensorRole::derived; });
  std::string text =
      fmt::format("{} to {} by {}, {} of {} layers\n\n", plan.source.architecture, target_text(plan.recipe),
                  plan.recipe.method, plan.recipe.layers.size(), plan.source.n_layers);
  text += size_table(plan);
  text += fmt::format(
      "\nCache: {:.1f} % of the source's. Reading it costs as much as reading the weights at {:.0f} tokens of context "
      "(batch 1).\n",
      100 * plan.kv_ratio, plan.break_even_tokens);
  if (plan.kv_bits < 16) {
    text +=
        fmt::format("Served with a cache of {} bits, as planned: {:.1f} %. `cinch eval --cache int{}` measures it.\n",
                    plan.kv_bits, 100 * plan.planned_kv_ratio, plan.kv_bits);
  }
  text += fmt::format("Tensors: {} kept, {} derived.\n", static_cast<int64_t>(plan.tensors.size()) - derived, derived);
  text += fmt::format("Needs about {} of memory, {} of disk and {}.\n\n",
                      human_bytes(static_cast<uint64_t>(plan.peak_memory_bytes)),
                      human_bytes(static_cast<uint64_t>(plan.disk_bytes)), seconds_text(plan.seconds_estimate));
  for (const RuntimeVerdict& verdict : plan.runtimes) {
    text += fmt::format("{:<10} {:<12} {}\n", verdict.name, verdict.loads ? "loads" : "cannot load", verdict.reason);
    if (!verdict.way_out.empty()) text += fmt::format("{:<23} [{}] {}\n", "", verdict.rule, verdict.way_out);
  }
  for (const std::string& warning : plan.warnings) text += fmt::format("Note: {}\n", warning);
  return text;
}

void print_plan(const ConversionPlan& plan) {
  if (json_output()) {
    print_json(plan.to_json());
  } else {
    print(plan_text(plan));
  }
}

}  // namespace cinch
