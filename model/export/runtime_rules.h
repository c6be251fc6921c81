// What stock runtimes can compute. One rule is one thing that a runtime lacks; plan, convert, export and verify ask the
// same rules, so that no model is written whose function a runtime would change in silence. Facts and their sources:
// docs/export.md. Predicates see a model's config only, as it is in cinch (a latent made by a conversion) or as it was
// exported (family deepseek_v3).
#pragma once

#include <string>
#include <vector>

#include "model/model_config.h"

namespace cinch {

struct RuntimeRule {
  const char* id;       // "llama.cpp/frequency-table"; "stock/..." holds for every runtime
  const char* runtime;  // one of known_runtimes(), or "" for all
  const char* checked;  // version that it was last checked against, and how
  bool approximable;    // an export can leave the thing out (--allow-approximate)
  /// What stands in the way, as the end of a sentence; empty when nothing does.
  std::string (*obstacle)(const ModelConfig&);
  const char* way_out;
};

/// "hf", "vllm", "sglang", "llama.cpp".
const std::vector<std::string>& known_runtimes();
const std::vector<RuntimeRule>& runtime_rules();

struct BrokenRule {
  const RuntimeRule* rule;
  std::string obstacle;
};
/// In the list's order; empty: the runtime computes the model's function.
std::vector<BrokenRule> broken_rules(const ModelConfig& model, const std::string& runtime);

struct RuntimeVerdict {
  std::string name;  // of the runtime
  bool loads = false;
  std::string rule;    // id of the first broken one, else how the model is held: "stock-class", "stock-latent"
  std::string reason;  // why, or as what
  std::string way_out;
};
/// One per known runtime.
std::vector<RuntimeVerdict> runtime_verdicts(const ModelConfig& model);

/// Throws UnsupportedError with id, obstacle and way out of every broken rule; with `approximate` of those alone that
/// cannot be left out. Returns what an approximate export leaves out.
std::vector<BrokenRule> require_runtime(const ModelConfig& model, const std::string& runtime, bool approximate);

}  // namespace cinch
