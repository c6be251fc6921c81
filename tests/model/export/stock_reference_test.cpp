// The plain formulas against transformers' logits, and through them the layouts that the writers make.
#include "model/export/stock_reference.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/export/runtime_rules.h"
#include "model/model_writer.h"
#include "tests/model/golden.h"

namespace cinch {
namespace {

class StockReference : public testing::TestWithParam<GoldenCase> {};

TEST_P(StockReference, EqualsTransformers) {
  const GoldenModel golden(GetParam());
  if (!has_stock_reference(golden.path())) GTEST_SKIP() << "skipped: the formulas of this class are not written here";
  for (int64_t row = 0; row < golden.ids().size(0); ++row) {
    const at::Tensor found = stock_reference_logits(golden.path(), golden.ids()[row]);
    EXPECT_LT(relative_difference(found, golden.logits()[row]), 1e-4);
  }
}

TEST_P(StockReference, GgufFilesComputeTheSame) {
  const GoldenModel golden(GetParam());
  const auto source = golden.open();
  const ModelConfig& config = source->config();
  if (!has_stock_reference(golden.path()) || !broken_rules(config, "llama.cpp").empty())
    GTEST_SKIP() << "skipped: llama.cpp has no such model, or its formulas are not written here";
  const TempFolder folder;
  const auto writer =
      ModelWriter::create(config, *source, {.output = folder / "m.gguf", .format = "gguf", .dtype = "f32"});
  for (const WeightSpec& weight : source->family().weights(config)) writer->copy(weight.name);
  writer->commit();
  const at::Tensor found = stock_reference_logits(folder / "m.gguf", golden.ids()[0]);
  EXPECT_LT(relative_difference(found, golden.logits()[0]), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Cases, StockReference, testing::ValuesIn(golden_cases()), [](const auto& param_info) {
  std::string name = param_info.param.name;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
});

TEST(StockReferences, CoverTheFamiliesThatExportsUse) {
  for (const char* name : {"llama_mha", "llama_gqa", "qwen3", "deepseek_v3_narrow"})
    EXPECT_TRUE(has_stock_reference(repo_file(std::string("tests/golden/model/") + name))) << name;
}

}  // namespace
}  // namespace cinch
