// The golden models of tests/golden/model, opened as models, with the ids and logits that transformers computed for
// them.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "checkpoints/checkpoint_format.h"
#include "model/model_source.h"
#include "tests/support/assets.h"

namespace cinch {

struct GoldenCase {
  std::string name;  // "qwen3", "rope/yarn"
  bool is_rope_variant() const { return name.starts_with("rope/"); }
};
inline void PrintTo(const GoldenCase& test_case, std::ostream* stream) { *stream << test_case.name; }

/// Every case with weights of its own, then the RoPE variants of llama_gqa.
inline std::vector<GoldenCase> golden_families() {
  std::vector<GoldenCase> cases;
  for (const auto& entry : std::filesystem::directory_iterator(repo_file("tests/golden/model"))) {
    if (std::filesystem::exists(entry.path() / "model.safetensors"))
      cases.push_back({entry.path().filename().string()});
  }
  std::sort(cases.begin(), cases.end(), [](const GoldenCase& a, const GoldenCase& b) { return a.name < b.name; });
  return cases;
}

/// Those whose class has grouped-query attention, which conversions start from.
inline std::vector<GoldenCase> grouped_golden_families() {
  std::vector<GoldenCase> cases = golden_families();
  std::erase_if(cases, [](const GoldenCase& test_case) { return test_case.name.starts_with("deepseek"); });
  return cases;
}

inline std::vector<GoldenCase> golden_cases() {
  std::vector<GoldenCase> cases = golden_families();
  for (const char* rope :
       {"dynamic", "linear", "llama3", "longrope", "longrope_attention_factor", "yarn", "yarn_mscale"}) {
    cases.push_back({std::string("rope/") + rope});
  }
  return cases;
}

/// A golden model on disk; RoPE variants are put together from their config.json and llama_gqa's weights.
class GoldenModel {
 public:
  explicit GoldenModel(const GoldenCase& test_case) : path_(repo_file("tests/golden/model/" + test_case.name)) {
    const auto golden = open_tensors(path_ / "golden.safetensors");
    ids_ = to_torch(golden->read("ids"), at::kLong);
    logits_ = to_torch(golden->read("logits"), at::kFloat);
    if (!test_case.is_rope_variant()) return;
    std::filesystem::copy_file(path_ / "config.json", folder_ / "config.json");
    std::filesystem::create_symlink(repo_file("tests/golden/model/llama_gqa/model.safetensors"),
                                    folder_ / "model.safetensors");
    path_ = folder_.path();
  }
  const std::filesystem::path& path() const { return path_; }
  std::shared_ptr<ModelSource> open() const { return ModelSource::open(path_); }
  const at::Tensor& ids() const { return ids_; }        // (B, T)
  const at::Tensor& logits() const { return logits_; }  // (B, T, V)

 private:
  TempFolder folder_;
  std::filesystem::path path_;
  at::Tensor ids_, logits_;
};

/// max |a - b| / max |b|
inline double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor expected = b.to(at::kDouble);
  return ((a.to(at::kDouble) - expected).abs().max() / expected.abs().max()).item<double>();
}

}  // namespace cinch
