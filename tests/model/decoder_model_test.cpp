#include "model/decoder_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "model/generator.h"
#include "tests/model/golden.h"

namespace cinch {
namespace {

class CachedForward : public testing::TestWithParam<GoldenCase> {};

/// Chunks of the given sizes through caches; the rest token by token.
at::Tensor in_chunks(const DecoderModel& model, const at::Tensor& ids, const std::vector<int64_t>& chunks) {
  std::vector<KvCache> caches(static_cast<size_t>(model.config().n_layers));
  std::vector<at::Tensor> parts;
  int64_t first = 0;
  for (size_t i = 0; first < ids.size(1); ++i) {
    const int64_t count = i < chunks.size() ? chunks[i] : 1;
    parts.push_back(model.forward(ids.narrow(1, first, count), &caches, ids.size(1)));
    first += count;
  }
  return at::cat(parts, 1);
}

// Longer than every window of the golden models, so that dropped tokens show; `length` fixes length-dependent RoPE.
TEST_P(CachedForward, EqualsTheFullForward) {
  const GoldenModel golden(GetParam());
  const DecoderModel model(golden.open(), at::kDouble);
  const at::Tensor whole = model.forward(golden.ids());
  EXPECT_LT(relative_difference(in_chunks(model, golden.ids(), {}), whole), 1e-12);
  EXPECT_LT(relative_difference(in_chunks(model, golden.ids(), {5, 1, 7, 2}), whole), 1e-12);
}

TEST_P(CachedForward, GreedyGenerationEqualsFullForwards) {
  const GoldenModel golden(GetParam());
  const DecoderModel model(golden.open(), at::kDouble);
  const at::Tensor row = golden.ids()[0].narrow(0, 0, 12).contiguous();
  const std::vector<int64_t> prompt(row.const_data_ptr<int64_t>(), row.const_data_ptr<int64_t>() + row.numel());
  const GenerateResult result = generate(model, prompt, {.max_new_tokens = 24}, {});
  ASSERT_EQ(result.ids.size(), 24u);
  std::vector<int64_t> all = prompt;
  all.insert(all.end(), result.ids.begin(), result.ids.end());
  const at::Tensor next = model.forward(at::tensor(all).unsqueeze(0)).argmax(-1)[0];
  for (size_t i = 0; i < result.ids.size(); ++i) {
    EXPECT_EQ(result.ids[i], next[static_cast<int64_t>(prompt.size() + i) - 1].item<int64_t>());
  }
  int64_t bytes = 0;
  for (const AttentionSpec& spec : model.config().layers) bytes += spec.kv_elements() * 8;
  EXPECT_EQ(DecodeSession(model, {.max_tokens = 8}, nullptr).kv_bytes_per_token(), bytes);
}

std::string test_name(const testing::TestParamInfo<GoldenCase>& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cases, CachedForward, testing::ValuesIn(golden_cases()), test_name);

TEST(LayerStream, ReplacedAttentionAndSkippedLayers) {
  const GoldenModel golden({"llama_gqa"});
  LayerStream stream(golden.open(), golden.ids(), {});
  EXPECT_EQ(stream.hidden().sizes(), (std::vector<int64_t>{2, golden.ids().size(1), 48}));
  const DecoderLayer layer = stream.load_layer();
  const DecoderLayer same =
      layer.with_attention(make_attention(layer.attention().spec(), layer.grouped_query_attention().weights()));
  EXPECT_TRUE(at::equal(same.forward(stream.hidden()), layer.forward(stream.hidden())));
  const at::Tensor h = stream.hidden();
  const at::Tensor by_parts =
      layer.add_mlp(layer.add_attention(h, layer.attention().forward(layer.attention_input(h), 0, 0, nullptr)));
  EXPECT_TRUE(at::equal(by_parts, layer.forward(h)));
  stream.hidden().copy_(layer.forward(stream.hidden()));
  stream.skip();
  EXPECT_EQ(stream.layer(), 1);
  stream.advance(stream.load_layer());
  EXPECT_TRUE(stream.done());
  EXPECT_LT(relative_difference(stream.logits(0, 2), golden.logits()), 1e-5);
}

TEST(LayerStream, BatchesDoNotChangeTheResult) {
  const GoldenModel golden({"mistral"});
  const at::Tensor windows = at::cat({golden.ids(), golden.ids().flip(0), golden.ids()});
  const auto logits = [&](int64_t batch_tokens) {
    LayerStream::Options options{.dtype = at::kDouble, .device = at::kCPU, .batch_tokens = batch_tokens};
    std::vector<at::Tensor> parts;
    stream_logits(golden.open(), windows, options, [&](int64_t, const at::Tensor& part) { parts.push_back(part); });
    return at::cat(parts);
  };
  EXPECT_LT(relative_difference(logits(1), logits(4096)), 1e-13);
}

TEST(DecoderModel, HalfPrecisionStaysNear) {
  const GoldenModel golden({"qwen3"});
  const at::Tensor logits = DecoderModel(golden.open(), at::kBFloat16).forward(golden.ids());
  EXPECT_EQ(logits.scalar_type(), at::kFloat);
  EXPECT_LT(relative_difference(logits, golden.logits()), 0.1);
}

}  // namespace
}  // namespace cinch
