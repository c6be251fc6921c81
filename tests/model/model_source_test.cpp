#include "model/model_source.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/errors.h"
#include "core/files.h"
#include "tests/model/golden.h"

namespace cinch {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// A copy of a golden folder whose config.json can be changed.
class ChangedModel {
 public:
  explicit ChangedModel(const std::string& name) : source_(repo_file("tests/golden/model/" + name)) {
    config = parse_json(read_text(source_ / "config.json"), "config.json");
    std::filesystem::create_symlink(source_ / "model.safetensors", folder_ / "model.safetensors");
  }
  std::shared_ptr<ModelSource> open() {
    write_text(folder_ / "config.json", config.dump());
    return ModelSource::open(folder_.path());
  }
  std::string fault() {
    try {
      open();
    } catch (const std::exception& error) {
      const ErrorReport report = describe_error(error);
      return report.lines.front();
    }
    return "";
  }
  Json config;
  TempFolder folder_;

 private:
  std::filesystem::path source_;
};

TEST(ModelSource, AllFaultsAreReportedAtOnce) {
  ChangedModel model("llama_gqa");
  model.config["num_hidden_layers"] = 3;
  model.config["intermediate_size"] = 63;
  model.config["num_key_value_heads"] = 3;
  EXPECT_THAT(model.fault(),
              AllOf(HasSubstr("\"model.layers.2.self_attn.q_proj.weight\" is missing"),
                    HasSubstr("\"model.layers.2.mlp.up_proj.weight\" is missing"),
                    HasSubstr("\"model.layers.0.self_attn.k_proj.weight\" is (16, 48), config.json promises (24, 48)"),
                    HasSubstr("\"model.layers.1.mlp.down_proj.weight\" is (48, 64), config.json promises (48, 63)")));
}

TEST(ModelSource, MissingHeadIsATieOnlyWhereTheConfigIsSilent) {
  ChangedModel model("llama_mha");  // tied, without lm_head
  model.config["tie_word_embeddings"] = false;
  EXPECT_THAT(model.fault(), HasSubstr("\"lm_head.weight\" is missing"));
  model.config.erase("tie_word_embeddings");
  EXPECT_TRUE(model.open()->config().tie_word_embeddings);
}

TEST(ModelSource, WhatIsNoModelIsRefusedWithTheWayOut) {
  TempFolder folder;
  EXPECT_THROW(ModelSource::open(folder / "nothing"), std::exception);
  try {
    ModelSource::open(folder.path());
    FAIL();
  } catch (const std::exception& error) {
    const ErrorReport report = describe_error(error);
    EXPECT_THAT(report.lines.front(), HasSubstr("config.json"));
    EXPECT_EQ(report.exit_code, ExitCode::bad_input);
    EXPECT_FALSE(report.help.empty());
  }
}

TEST(ModelSource, TensorsShareTheMappedFile) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  const at::Tensor a = source->tensor("model.norm.weight", at::kBFloat16),
                   b = source->tensor("model.norm.weight", at::kBFloat16);
  EXPECT_EQ(a.data_ptr(), b.data_ptr());
  EXPECT_NE(source->tensor("model.norm.weight", at::kFloat).data_ptr(), a.data_ptr());
}

TEST(ModelSource, SideFilesAreCarried) {
  ChangedModel model("llama_gqa");
  write_text(model.folder_ / "generation_config.json", "{}");
  write_text(model.folder_ / "LICENSE", "do what you like");
  write_text(model.folder_ / "training_args.bin", "no");
  const auto files = model.open()->side_files();
  EXPECT_EQ(files.at("LICENSE"), "do what you like");
  EXPECT_TRUE(files.contains("generation_config.json"));
  EXPECT_FALSE(files.contains("training_args.bin"));
  EXPECT_FALSE(files.contains("config.json"));
}

TEST(TensorBytes, RoundTripsEveryWeightType) {
  const at::Tensor values = at::tensor({1.5, -2.25, 0.0, 1024.0}, at::kDouble).view({2, 2});
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBF16, Dtype::kF32, Dtype::kF64}) {
    const auto bytes = std::make_shared<std::vector<std::byte>>(to_bytes(values, dtype));
    EXPECT_EQ(bytes->size(), static_cast<size_t>(4 * dtype_bits(dtype) / 8));
    const TensorData data{{"x", dtype, {2, 2}, ""}, *bytes, bytes};
    EXPECT_TRUE(at::equal(to_torch(data, at::kDouble), values));
    EXPECT_EQ(file_dtype(torch_dtype(dtype)), dtype);
  }
  EXPECT_THROW(torch_dtype(Dtype::kF4), UnsupportedError);
}

TEST(TensorBytes, UnalignedDataIsCopied) {
  const at::Tensor values = at::arange(5, at::kFloat);
  const std::vector<std::byte> bytes = to_bytes(values, Dtype::kF32);
  const auto shifted = std::make_shared<std::vector<std::byte>>(bytes.size() + 1);
  std::copy(bytes.begin(), bytes.end(), shifted->begin() + 1);
  const TensorData data{{"x", Dtype::kF32, {5}, ""}, std::span(*shifted).subspan(1), shifted};
  EXPECT_TRUE(at::equal(to_torch(data, at::kFloat), values));
}

}  // namespace
}  // namespace cinch
