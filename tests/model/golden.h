// The golden models of tests/golden/model, opened as models, with the ids and logits that transformers computed for
// them.
#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/model_source.h"
#include "tests/support/assets.h"

namespace cinch {

struct GoldenCase {
  std::string name;  // "qwen3", "rope/yarn"
  bool is_rope_variant() const { return name.starts_with("rope/"); }
};
void PrintTo(const GoldenCase& test_case, std::ostream* stream);

/// Every case with weights of its own, then the RoPE variants of llama_gqa.
std::vector<GoldenCase> golden_families();
std::vector<GoldenCase> golden_cases();

/// A golden model on disk; RoPE variants are put together from their config.json and llama_gqa's weights.
class GoldenModel {
 public:
  explicit GoldenModel(const GoldenCase& test_case);
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
double relative_difference(const at::Tensor& a, const at::Tensor& b);

}  // namespace cinch
