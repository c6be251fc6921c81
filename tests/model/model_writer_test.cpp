#include "model/model_writer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "core/files.h"
#include "model/decoder_model.h"
#include "tests/model/golden.h"

namespace cinch {
namespace {

void copy_all(const ModelSource& source, const ModelWriterOptions& options) {
  const auto writer = ModelWriter::create(source.config(), source, options);
  for (const WeightSpec& weight : source.family().weights(source.config())) writer->copy(weight.name);
  writer->commit();
}

size_t entries(const std::filesystem::path& folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

TEST(ModelWriter, ShardsLoadAsOneModel) {
  const GoldenModel golden({"llama_bias"});
  const auto source = golden.open();
  TempFolder folder;
  copy_all(*source, {.output = folder / "out", .shard_bytes = 20000});
  EXPECT_TRUE(std::filesystem::exists(folder / "out/model.safetensors.index.json"));
  EXPECT_GT(entries(folder / "out"), 4u);
  EXPECT_TRUE(at::equal(DecoderModel(ModelSource::open(folder / "out"), at::kFloat).forward(golden.ids()),
                        DecoderModel(source, at::kFloat).forward(golden.ids())));
}

TEST(ModelWriter, WithoutCommitNothingRemains) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  TempFolder folder;
  for (const char* format : {"hf", "hdf5", "safetensors", "gguf"}) {
    {
      const auto writer = ModelWriter::create(source->config(), *source, {.output = folder / "out", .format = format});
      writer->copy("model.norm.weight");
    }
    EXPECT_EQ(entries(folder.path()), 0u) << format;
  }
}

TEST(ModelWriter, MissingTensorsFailTheCommit) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  TempFolder folder;
  {
    const auto writer = ModelWriter::create(source->config(), *source, {.output = folder / "out"});
    writer->copy("model.norm.weight");
    EXPECT_THROW(writer->commit(), CheckpointError);
  }
  EXPECT_EQ(entries(folder.path()), 0u);
}

TEST(ModelWriter, ForceReplacesOnlyWhenComplete) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  TempFolder folder;
  const auto out = folder / "out";
  std::filesystem::create_directory(out);
  write_text(out / "old.txt", "old");
  try {
    ModelWriter::create(source->config(), *source, {.output = out});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.help(), testing::HasSubstr("--force"));
  }
  {
    const auto writer = ModelWriter::create(source->config(), *source, {.output = out, .force = true});
    writer->copy("model.norm.weight");
  }
  EXPECT_EQ(read_text(out / "old.txt"), "old");
  copy_all(*source, {.output = out, .force = true});
  EXPECT_FALSE(std::filesystem::exists(out / "old.txt"));
  EXPECT_NO_THROW(ModelSource::open(out));
  EXPECT_EQ(entries(folder.path()), 1u);
}

TEST(ModelWriter, TidiesUpAfterKilledRuns) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  TempFolder folder;
  std::filesystem::create_directory(folder / ".out.tmp-999999999");  // above every process id
  copy_all(*source, {.output = folder / "out"});
  EXPECT_EQ(entries(folder.path()), 1u);
}

TEST(ModelWriter, DtypeShowsInFileAndConfig) {
  const auto source = GoldenModel({"qwen3"}).open();
  TempFolder folder;
  copy_all(*source, {.output = folder / "out", .dtype = "f32"});
  const auto copy = ModelSource::open(folder / "out");
  EXPECT_EQ(copy->config().dtype, "float32");
  for (const TensorInfo& info : copy->tensors().tensors()) EXPECT_EQ(info.dtype, Dtype::kF32) << info.name;
  EXPECT_THROW(ModelWriter::create(source->config(), *source, {.output = folder / "x", .dtype = "q8_0"}), UsageError);
  EXPECT_THROW(ModelWriter::create(source->config(), *source, {.output = folder / "x", .format = "onnx"}), UsageError);
}

TEST(ModelWriter, MixedLayersNeedTheNativeForm) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  ModelConfig config = source->config();
  config.layers[0].n_kv_heads = 1;
  TempFolder folder;
  EXPECT_THROW(ModelWriter::create(config, *source, {.output = folder / "out"}), UnsupportedError);
  const auto writer = ModelWriter::create(config, *source, {.output = folder / "out", .format = "hdf5"});
  for (const WeightSpec& weight : source->family().weights(config)) {
    const at::Tensor tensor = source->tensor(weight.name, at::kFloat);
    writer->write(weight.name, tensor.narrow(0, 0, weight.shape[0]));
  }
  writer->commit();
  const auto copy = ModelSource::open(folder / "out");
  EXPECT_EQ(copy->config().layers[0].n_kv_heads, 1);
  EXPECT_EQ(copy->config().layers[1].n_kv_heads, 2);
}

TEST(ModelWriter, SideFilesComeFromTheSourceUnlessWritten) {
  const auto golden = repo_file("tests/golden/model/llama_gqa");
  TempFolder folder;
  std::filesystem::create_directory(folder / "in");
  for (const char* name : {"config.json", "model.safetensors"})
    std::filesystem::copy_file(golden / name, (folder / "in") / name);
  write_text(folder / "in/LICENSE", "one");
  write_text(folder / "in/generation_config.json", "{}");
  const auto source = ModelSource::open(folder / "in");
  const auto writer = ModelWriter::create(source->config(), *source, {.output = folder / "out"});
  for (const WeightSpec& weight : source->family().weights(source->config())) writer->copy(weight.name);
  writer->write_side_file("README.md", "card");
  writer->write_side_file("generation_config.json", "{\"a\": 1}");
  writer->commit();
  EXPECT_EQ(read_text(folder / "out/README.md"), "card");
  EXPECT_EQ(read_text(folder / "out/LICENSE"), "one");
  EXPECT_EQ(read_text(folder / "out/generation_config.json"), "{\"a\": 1}");
}

}  // namespace
}  // namespace cinch
