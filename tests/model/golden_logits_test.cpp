#include "tests/model/golden.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "model/decoder_model.h"

namespace cinch {

namespace {

class GoldenLogits : public testing::TestWithParam<GoldenCase> {};

TEST_P(GoldenLogits, WholeModelEqualsTransformers) {
  const GoldenModel golden(GetParam());
  const DecoderModel model(golden.open(), at::kFloat);
  EXPECT_LT(relative_difference(model.forward(golden.ids()), golden.logits()), 1e-5);
}

TEST_P(GoldenLogits, DoublePrecisionEqualsTransformers) {
  const GoldenModel golden(GetParam());
  const DecoderModel model(golden.open(), at::kDouble);
  const at::Tensor logits = model.forward(golden.ids());
  EXPECT_EQ(logits.scalar_type(), at::kDouble);
  EXPECT_LT(relative_difference(logits, golden.logits()), 1e-5);
}

TEST_P(GoldenLogits, LayerStreamEqualsTransformers) {
  const GoldenModel golden(GetParam());
  LayerStream::Options options;
  options.batch_tokens = 1;  // one window at a time
  std::vector<at::Tensor> parts;
  stream_logits(golden.open(), golden.ids(), options, [&](int64_t first, const at::Tensor& logits) {
    EXPECT_EQ(first,
              static_cast<int64_t>(parts.size() == 0 ? 0 : parts.front().size(0) * static_cast<int64_t>(parts.size())));
    parts.push_back(logits.clone());
  });
  EXPECT_LT(relative_difference(at::cat(parts), golden.logits()), 1e-5);
}

std::string test_name(const testing::TestParamInfo<GoldenCase>& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenLogits, testing::ValuesIn(golden_cases()), test_name);

class RealModel : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(RealModel, EqualsTransformers) {
  const auto [name, folder] = GetParam();
  const std::filesystem::path path = asset(std::string("models/") + folder);
  CINCH_NEEDS_ASSET(path);
  const auto golden = open_tensors(repo_file("tests/golden/model/real.safetensors"));
  const at::Tensor ids = to_torch(golden->read(std::string(name) + ".ids"), at::kLong);
  const at::Tensor expected = to_torch(golden->read(std::string(name) + ".logits"), at::kFloat);
  const DecoderModel model(ModelSource::open(path), at::kFloat);
  const at::Tensor logits = model.forward(ids);
  const int64_t stride = std::max<int64_t>(1, logits.size(2) / 32);
  EXPECT_LT((logits.slice(2, 0, logits.size(2), stride) - expected).abs().max().item<double>(), 2e-4);
}

INSTANTIATE_TEST_SUITE_P(Models, RealModel,
                         testing::Values(std::pair("tinyllama_f32", "tinyllama3m-mha/hf-f32"),
                                         std::pair("tinyllama_bf16", "tinyllama3m-mha/hf-bf16-sharded"),
                                         std::pair("stories", "stories260K-gqa/hf-f32"),
                                         std::pair("stories", "stories260K-gqa/stories260Ktok512.gguf")));

}  // namespace
}  // namespace cinch
