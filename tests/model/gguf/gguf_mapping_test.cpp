#include "model/gguf/gguf_mapping.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "model/decoder_model.h"
#include "model/gguf/gguf_rope.h"
#include "model/model_writer.h"
#include "tests/model/golden.h"

namespace cinch {
namespace {

std::shared_ptr<ModelSource> through_gguf(const ModelSource& source, const ModelConfig& config,
                                          const std::filesystem::path& file, const std::string& dtype) {
  const auto writer = ModelWriter::create(config, source, {.output = file, .format = "gguf", .dtype = dtype});
  for (const WeightSpec& weight : source.family().weights(config)) writer->copy(weight.name);
  writer->commit();
  return ModelSource::open(file);
}

/// The golden model as GGUF can hold it: without windows that llama.cpp ignores, and with Gemma's usual scale.
ModelConfig for_gguf(const ModelSource& source) {
  ModelConfig config = source.config();
  for (AttentionSpec& spec : config.layers) {
    if (config.family != "gemma2") spec.window = 0;
    spec.latent_norm_eps = config.rms_norm_eps;  // deepseek2 has one epsilon
  }
  return config;
}

class GgufRoundTrip : public testing::TestWithParam<const char*> {};

// llama.cpp itself is compared with in scripts; here writer and reader agree, through permuted rows, names, norms and
// RoPE keys.
TEST_P(GgufRoundTrip, KeepsTheFunction) {
  const GoldenModel golden({GetParam()});
  const auto source = golden.open();
  TempFolder folder;
  const auto copy = through_gguf(*source, for_gguf(*source), folder / "model.gguf", "f32");
  EXPECT_EQ(copy->tensors().tensors().size() > 0, true);
  for (const WeightSpec& weight : source->family().weights(source->config())) {
    EXPECT_TRUE(at::equal(copy->tensor(weight.name, at::kFloat), source->tensor(weight.name, at::kFloat)))
        << weight.name;
  }
  const RopeSpec &a = source->config().layers[0].rope, &b = copy->config().layers[0].rope;
  for (const int64_t length : {10, 40, 100}) {
    const std::vector<double> x = Rope(a).inv_freq(length), y = Rope(b).inv_freq(length);
    ASSERT_EQ(x.size(), y.size());
    for (size_t j = 0; j < x.size(); ++j) EXPECT_NEAR(x[j] / y[j], 1.0, 1e-6);
  }
  EXPECT_NEAR(Rope(a).attention_scaling(), Rope(b).attention_scaling(), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Families, GgufRoundTrip,
                         testing::Values("llama_mha", "llama_gqa", "llama_bias", "llama_wide_heads", "mistral", "qwen2",
                                         "qwen3", "deepseek_v2", "phi3_long", "phi3_short", "rope/linear", "rope/yarn",
                                         "rope/llama3", "rope/longrope_attention_factor"),
                         [](const auto& param_info) {
                           std::string name = param_info.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

TEST(GgufMapping, GemmaStoresOnePlusWeight) {
  const auto source = GoldenModel({"gemma2"}).open();
  ModelConfig config = source->config();
  for (AttentionSpec& spec : config.layers) spec.scale = 0.25;
  TempFolder folder;
  const auto copy = through_gguf(*source, config, folder / "model.gguf", "f32");
  const auto file = GgufSource::open(folder / "model.gguf");
  const at::Tensor stored = to_torch(file->read("blk.1.post_ffw_norm.weight"), at::kFloat);
  const at::Tensor weight = source->tensor("model.layers.1.post_feedforward_layernorm.weight", at::kFloat);
  EXPECT_TRUE(at::allclose(stored, weight + 1));
  EXPECT_TRUE(
      at::allclose(copy->tensor("model.layers.1.post_feedforward_layernorm.weight", at::kFloat), weight, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(to_torch(copy->tensors().read_rows("model.norm.weight", 3, 9), at::kFloat),
                           source->tensor("model.norm.weight", at::kFloat).slice(0, 3, 9), 1e-5, 1e-6));
  EXPECT_EQ(copy->config().layers[0].window, 6);
  EXPECT_EQ(copy->config().layers[1].window, 0);
  EXPECT_EQ(copy->config().layers[1].softcap, 5.0);
}

TEST(GgufMapping, RowsOfLlamaArePermuted) {
  const auto source = GoldenModel({"llama_bias"}).open();
  TempFolder folder;
  const auto copy = through_gguf(*source, source->config(), folder / "model.gguf", "f32");
  const auto file = GgufSource::open(folder / "model.gguf");
  const at::Tensor stored = to_torch(file->read("blk.0.attn_k.weight"), at::kFloat).view({3, 8, 2, 72});
  const at::Tensor weight = source->tensor("model.layers.0.self_attn.k_proj.weight", at::kFloat).view({3, 2, 8, 72});
  EXPECT_TRUE(at::equal(stored, weight.transpose(1, 2)));
  const std::string name = "model.layers.0.self_attn.k_proj.weight";
  EXPECT_TRUE(at::equal(to_torch(copy->tensors().read_rows(name, 5, 20), at::kFloat),
                        source->tensor(name, at::kFloat).slice(0, 5, 20)));
}

TEST(GgufMapping, QuantisedTypesAndVectors) {
  const auto source =
      GoldenModel({"llama_mha"}).open();  // rows of 48 are no multiple of 32, those of down_proj (80) neither
  TempFolder folder;
  const auto copy = through_gguf(*source, source->config(), folder / "model.gguf", "q8_0");
  const auto file = GgufSource::open(folder / "model.gguf");
  EXPECT_EQ(file->find("blk.0.attn_q.weight")->dtype, Dtype::kF16);
  EXPECT_EQ(file->find("blk.0.attn_norm.weight")->dtype, Dtype::kF32);
  const auto wide = GoldenModel({"llama_gqa"}).open();  // down_proj has rows of 64
  const auto second = through_gguf(*wide, wide->config(), folder / "wide.gguf", "q8_0");
  EXPECT_EQ(second->tensors().find("model.layers.0.mlp.down_proj.weight")->stored_as, "Q8_0");
  EXPECT_THAT(second->quality_note(), testing::HasSubstr("Q8_0"));
  const at::Tensor a = second->tensor("model.layers.0.mlp.down_proj.weight", at::kFloat),
                   b = wide->tensor("model.layers.0.mlp.down_proj.weight", at::kFloat);
  EXPECT_LT((a - b).abs().max().item<double>() / b.abs().max().item<double>(), 1.0 / 127);
}

// Files from before llama.cpp cached the latent hold its up-projection whole.
TEST(GgufMapping, ReadsOldFilesOfLatentModels) {
  const auto source = GoldenModel({"deepseek_v2"}).open();
  const TempFolder folder;
  through_gguf(*source, for_gguf(*source), folder / "new.gguf", "f32");
  const auto file = GgufSource::open(folder / "new.gguf");
  const AttentionSpec& spec = source->config().layers[0];
  GgufMetadata metadata;
  for (const auto& [key, value] : file->gguf_metadata()) {
    if (key.ends_with("_length_mla")) continue;
    const auto size = [&](int64_t number) { return GgufValue::u32(static_cast<uint32_t>(number)); };
    metadata.emplace_back(key, key.ends_with("attention.key_length")
                                   ? size(spec.qk_nope_head_dim + spec.qk_rope_head_dim)
                               : key.ends_with("attention.value_length") ? size(spec.v_head_dim)
                                                                         : value);
  }
  std::vector<TensorInfo> infos;
  std::map<std::string, std::vector<std::byte>> data;
  for (const TensorInfo& info : file->tensors()) {
    if (info.name.ends_with("attn_v_b.weight")) continue;
    TensorInfo kept = info;
    const TensorData stored = file->read(info.name);
    std::vector<std::byte> bytes(stored.bytes.begin(), stored.bytes.end());
    if (info.name.ends_with("attn_k_b.weight")) {
      const std::string layer = info.name.substr(4, info.name.find('.', 4) - 4);
      const at::Tensor whole = source->tensor("model.layers." + layer + ".self_attn.kv_b_proj.weight", at::kFloat);
      kept.name = "blk." + layer + ".attn_kv_b.weight";
      kept.shape = whole.sizes().vec();
      bytes = to_bytes(whole, Dtype::kF32);
    }
    data[kept.name] = std::move(bytes);
    infos.push_back(std::move(kept));
  }
  const auto sink = create_gguf_sink(folder / "old.gguf", std::move(metadata));
  sink->declare(infos);
  for (const auto& [name, bytes] : data) sink->write(name, bytes);
  sink->commit();
  const at::Tensor ids = at::arange(1, 20, at::kLong).unsqueeze(0);
  const auto forward = [&](const char* name) {
    return DecoderModel(ModelSource::open(folder / name), at::kFloat).forward(ids);
  };
  EXPECT_LT(relative_difference(forward("old.gguf"), forward("new.gguf")), 1e-6);
}

TEST(GgufMapping, RefusesOtherFunctions) {
  const TempFolder folder;
  for (const char* name : {"mistral", "rope/dynamic", "rope/yarn_mscale", "gemma2"}) {
    const auto source = GoldenModel({name}).open();
    const ModelWriterOptions options{.output = folder / "model.gguf", .format = "gguf"};
    EXPECT_THROW(ModelWriter::create(source->config(), *source, options), UnsupportedError) << name;
    EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << name;
  }
}

// Llama-3.1's real parameters come back as llama3, any other divisors as longrope with the same frequencies.
TEST(GgufMapping, RopeDivisorsComeBack) {
  ModelConfig config = GoldenModel({"rope/llama3"}).open()->config();
  RopeSpec& rope = config.layers[0].rope;
  rope.theta = 500000;
  rope.rotary_dim = 128;
  rope.factor = 32;
  rope.original_max_position_embeddings = 8192;
  const auto tensors = gguf_rope_tensors(config);
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].first, "rope_freqs.weight");
  ASSERT_EQ(tensors[0].second.size(), 64u);
  EXPECT_FLOAT_EQ(tensors[0].second.front(), 1.0f);
  EXPECT_FLOAT_EQ(tensors[0].second.back(), 32.0f);
}

TEST(GgufMapping, RealFileEqualsTheFolder) {
  const auto folder = asset("models/stories260K-gqa/hf-f32"),
             file = asset("models/stories260K-gqa/stories260Ktok512.gguf");
  CINCH_NEEDS_ASSET(folder);
  CINCH_NEEDS_ASSET(file);
  const auto a = ModelSource::open(folder), b = ModelSource::open(file);
  EXPECT_EQ(a->config().layers[0].n_kv_heads, b->config().layers[0].n_kv_heads);
  const at::Tensor ids = at::arange(3, 200, at::kLong).unsqueeze(0);
  EXPECT_LT(relative_difference(DecoderModel(b, at::kFloat).forward(ids), DecoderModel(a, at::kFloat).forward(ids)),
            1e-6);
  EXPECT_NE(b->tokenizer(), nullptr);
  const auto files = b->side_files();
  EXPECT_TRUE(files.contains("tokenizer.json"));
  EXPECT_TRUE(files.contains("tokenizer_config.json"));
}

}  // namespace
}  // namespace cinch
