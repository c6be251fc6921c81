#include "model/export/exporter.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "checkpoints/checkpoint_format.h"
#include "checkpoints/tensor_view.h"
#include "core/errors.h"
#include "core/files.h"
#include "model/decoder_model.h"
#include "model/model_view.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"

namespace cinch {
namespace {

/// A golden model with latents of one base, whose weights are small enough for narrow types, but for the rotary keys,
/// which are times `rotary` (and the queries over it).
std::shared_ptr<ModelSource> latent_model(const std::string& family, const std::filesystem::path& folder,
                                          double rotary = 1) {
  const auto source = GoldenModel({family}).open();
  std::map<int64_t, LatentSizes> layers;
  for (int64_t layer = 0; layer < source->config().n_layers; ++layer)
    layers[layer] = {.rank = 20, .nope = 6, .rotary = 8, .value = 10};
  LatentModel model = with_latent_layers(*source, layers);
  for (AttentionSpec& spec : model.config.layers) {
    spec.rope_inv_freq = {1.0, 0.1, 0.01, 0.001};
    spec.window = 0;
  }
  for (auto& [layer, weights] : model.latent) {
    weights.kv_a_proj.slice(0, 20).mul_(rotary);
    weights.q_proj.unflatten(0, {-1, 14}).slice(1, 6).div_(rotary);
  }
  write_latent_model(model, *source, {.output = folder, .format = "native", .dtype = "f32"});
  Json config = parse_json(read_text(folder / "config.json"), "config.json");
  config["rms_norm_eps"] = 1e-5;  // another one than the class has on its latent
  write_text(folder / "config.json", config.dump());
  return ModelSource::open(folder);
}

at::Tensor logits(std::shared_ptr<ModelSource> source) {
  return DecoderModel(std::move(source), at::kFloat).forward(at::arange(1, 31, at::kLong).unsqueeze(0));
}

struct Target {
  const char* format;
  const char* dtype;
  const char* runtime;
  double tolerance;  // of the largest logit
};
void PrintTo(const Target& target, std::ostream* stream) {
  *stream << target.format << " " << target.dtype << " " << target.runtime;
}

class ExportedLatent : public testing::TestWithParam<Target> {};

TEST_P(ExportedLatent, ReadsBackWithTheSameFunction) {
  const Target& target = GetParam();
  const TempFolder folder;
  const auto source = latent_model("llama_gqa", folder / "in");
  const std::filesystem::path out = folder / (std::string(target.format) == "gguf" ? "out.gguf" : "out");
  const ExportReport report = export_model(
      source, {.writer = {.output = out, .format = target.format, .dtype = target.dtype, .runtime = target.runtime}});
  EXPECT_TRUE(report.left_out.empty());
  EXPECT_EQ(report.verification["exact"], true);
  const auto written = ModelSource::open(out);
  EXPECT_EQ(written->config().family, "deepseek_v3");
  EXPECT_LT(relative_difference(logits(written), logits(source)), target.tolerance);
  const std::filesystem::path record =
      std::string(target.format) == "gguf" ? folder / "out.gguf.verification.json" : out / "verification.json";
  const Json json = parse_json(read_text(record), record.string());
  EXPECT_EQ(json["verification"]["path"], "formulas of the runtime's class, on the tensors as written");
  EXPECT_LE(json["verification"]["difference"]["kl_mean"].get<double>(),
            json["verification"]["allowed_kl_mean"].get<double>());
}

INSTANTIATE_TEST_SUITE_P(Targets, ExportedLatent,
                         testing::Values(Target{"hf", "f32", "", 1e-4}, Target{"hf", "bf16", "hf", 0.2},
                                         Target{"hf", "f16", "hf", 0.05}, Target{"hf", "f32", "sglang", 1e-4},
                                         Target{"gguf", "f32", "", 1e-4}, Target{"gguf", "bf16", "llama.cpp", 0.2},
                                         Target{"gguf", "f16", "", 0.05}, Target{"gguf", "q8_0", "", 0.2}));

TEST(Exporter, LargeRotaryKeysFitFp16) {
  const TempFolder folder;
  const auto source = latent_model("llama_gqa", folder / "in", 2000);
  const ExportReport report =
      export_model(source, {.writer = {.output = folder / "out", .format = "hf", .dtype = "f16", .runtime = "hf"}});
  EXPECT_EQ(report.verification["exact"], true);
  EXPECT_LT(relative_difference(logits(ModelSource::open(folder / "out")), logits(source)), 0.05);
}

TEST(Exporter, WhatTouchesTheLatentIsNotQuantised) {
  const TempFolder folder;
  const auto source = ModelSource::open(repo_file("examples/stories260K"));  // whose widths are multiples of 32
  std::map<int64_t, LatentSizes> layers;
  for (int64_t layer = 0; layer < source->config().n_layers; ++layer)
    layers[layer] = {.rank = 32, .nope = 32, .rotary = 8, .value = 32};
  LatentModel model = with_latent_layers(*source, layers);
  for (AttentionSpec& spec : model.config.layers) spec.rope_inv_freq = {1.0, 0.1, 0.01, 0.001};
  write_latent_model(model, *source, {.output = folder / "in", .format = "native", .dtype = "f32"});
  export_model(ModelSource::open(folder / "in"),
               {.writer = {.output = folder / "out.gguf", .format = "gguf", .dtype = "q8_0", .runtime = ""}});
  const auto written = open_tensors(folder / "out.gguf");
  std::map<std::string, std::string> types;
  for (const TensorInfo& info : written->tensors())
    types[info.name] = info.stored_as.empty() ? std::string(dtype_name(info.dtype)) : info.stored_as;
  EXPECT_EQ(types.at("blk.0.attn_kv_a_mqa.weight"), "F32");
  EXPECT_EQ(types.at("blk.0.attn_k_b.weight"), "F16");
  EXPECT_EQ(types.at("blk.0.attn_v_b.weight"), "F16");
  EXPECT_EQ(types.at("blk.0.ffn_up.weight"), "Q8_0");
}

TEST(Exporter, OneFolderForEveryRuntimeHasOneEpsilon) {
  const TempFolder folder;
  const auto source = latent_model("llama_gqa", folder / "in");
  export_model(source, {.writer = {.output = folder / "out", .runtime = "sglang"}});
  const ModelConfig written = ModelSource::open(folder / "out")->config();
  EXPECT_EQ(written.rms_norm_eps, 1e-6);
  for (const char* runtime : {"hf", "sglang"}) EXPECT_TRUE(broken_rules(written, runtime).empty()) << runtime;
  // An export for transformers keeps the model's own epsilon, which the others would apply to the latent.
  export_model(source, {.writer = {.output = folder / "hf"}});
  EXPECT_EQ(broken_rules(ModelSource::open(folder / "hf")->config(), "sglang").front().rule->id,
            std::string("sglang/latent-eps"));
}

TEST(Exporter, PadsTheLatentForRuntimesOfFixedWidth) {
  const TempFolder folder;
  const auto source = latent_model("llama_gqa", folder / "in");
  const ModelWriterOptions writer{.output = folder / "out", .runtime = "vllm"};
  EXPECT_THROW(export_model(source, {.writer = writer}), UnsupportedError);
  export_model(source, {.writer = writer, .pad_rank = 312});
  const auto written = ModelSource::open(folder / "out");
  EXPECT_EQ(written->config().layers[0].kv_lora_rank, 312);
  EXPECT_TRUE(broken_rules(written->config(), "vllm").empty());
  EXPECT_LT(relative_difference(logits(written), logits(source)), 1e-4);
  EXPECT_THROW(export_model(source, {.writer = {.output = folder / "no"}, .pad_rank = 7}), UsageError);
}

TEST(Exporter, ApproximateExportsAreMeasured) {
  const TempFolder folder;
  const auto source = latent_model("qwen2", folder / "in");
  const ModelWriterOptions exact{.output = folder / "out"}, approximate{.output = folder / "out", .approximate = true};
  EXPECT_THROW(export_model(source, {.writer = exact}), UnsupportedError);
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  const ExportReport report = export_model(source, {.writer = approximate});
  ASSERT_FALSE(report.left_out.empty());
  EXPECT_EQ(report.verification["exact"], false);
  EXPECT_GT(report.verification["difference"]["kl_mean"].get<double>(), 1e-3);
  EXPECT_TRUE(std::filesystem::exists(folder / "out" / "verification.json"));
}

TEST(Exporter, ShardsTheIndexNames) {
  const TempFolder folder;
  const auto source = latent_model("llama_mha", folder / "in");
  export_model(source, {.writer = {.output = folder / "out", .shard_bytes = 20000}});
  const Json index = parse_json(read_text(folder / "out" / "model.safetensors.index.json"), "index");
  std::set<std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) files.insert(file.get<std::string>());
  EXPECT_GT(files.size(), 2u);
  EXPECT_TRUE(index["weight_map"].contains("lm_head.weight"));  // llama_mha is tied
  EXPECT_LT(relative_difference(logits(ModelSource::open(folder / "out")), logits(source)), 1e-4);
}

TEST(Exporter, GroupedQueryModelsKeepTheirClass) {
  const TempFolder folder;
  for (const char* family : {"llama_gqa", "qwen3", "phi3_long", "gemma2"}) {
    const auto source = GoldenModel({family}).open();
    const ExportReport report = export_model(source, {.writer = {.output = folder / family, .dtype = "f32"}});
    EXPECT_EQ(ModelSource::open(folder / family)->config().architecture, source->config().architecture);
    EXPECT_LT(report.verification["difference"]["kl_mean"].get<double>(), 1e-6) << family;
  }
}

/// A source one of whose tensors reads otherwise the second time: what is written is not what was meant.
class Fickle : public ModelView {
 public:
  explicit Fickle(std::shared_ptr<ModelSource> inner) : ModelView(std::move(inner)), tensors_(inner_->tensors()) {}
  const TensorSource& tensors() const override { return tensors_; }

 private:
  class Tensors : public TensorView {
   public:
    explicit Tensors(const TensorSource& inner) : TensorView(inner) {
      tensors_ = inner.tensors();
      build_index();
    }
    TensorData read(const std::string& name) const override {
      TensorData data = inner_.read(name);
      if (name != "model.layers.0.mlp.up_proj.weight" || reads_++ > 0) return data;
      auto changed = std::make_shared<std::vector<std::byte>>(data.bytes.size());
      return {data.info, *changed, changed};
    }

   private:
    mutable int reads_ = 0;
  };
  Tensors tensors_;
};

TEST(Exporter, PublishesNothingThatComputesOtherwise) {
  const TempFolder folder;
  const auto source = std::make_shared<Fickle>(GoldenModel({"llama_gqa"}).open());
  try {
    export_model(source, {.writer = {.output = folder / "out"}});
    FAIL() << "not noticed";
  } catch (const VerificationError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("computes other logits"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Exporter, RuntimeAndFormatMustAgree) {
  const TempFolder folder;
  const auto source = GoldenModel({"llama_gqa"}).open();
  const auto write = [&](const char* format, const char* runtime) {
    export_model(source, {.writer = {.output = folder / "out", .format = format, .runtime = runtime}});
  };
  EXPECT_THROW(write("gguf", "vllm"), UsageError);
  EXPECT_THROW(write("hf", "llama.cpp"), UsageError);
  EXPECT_THROW(write("native", "hf"), UsageError);
}

}  // namespace
}  // namespace cinch
