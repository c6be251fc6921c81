// Latent layers through every family: written, read, run whole, with caches, layer by layer.
#include "tests/model/latent_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/errors.h"
#include "core/files.h"
#include "model/generator.h"
#include "tests/model/golden.h"

namespace cinch {
namespace {

constexpr LatentSizes kFirst{.rank = 11, .nope = 5, .rotary = 6, .value = 7};
constexpr LatentSizes kLast{.rank = 20, .nope = 9, .rotary = 0, .value = 4};

/// Latent first and last layers around grouped-query ones.
LatentModel mixed(const ModelSource& source) {
  std::map<int64_t, LatentSizes> layers = {{0, kFirst}};
  if (source.config().n_layers > 2) layers[source.config().n_layers - 1] = kLast;
  return with_latent_layers(source, layers);
}

ModelWriterOptions exact(const std::filesystem::path& out, const std::string& format) {
  return {.output = out, .format = format, .dtype = "f64"};
}

class LatentFamily : public testing::TestWithParam<GoldenCase> {};

/// The same model put together in memory, layer by layer.
at::Tensor logits_in_memory(const LatentModel& model, std::shared_ptr<ModelSource> source, const at::Tensor& ids) {
  LayerStream stream(std::move(source), ids, {.dtype = at::kDouble});
  while (!stream.done()) {
    const DecoderLayer layer = stream.load_layer();
    const auto found = model.latent.find(stream.layer());
    if (found == model.latent.end()) {
      stream.advance(layer);
    } else {
      const AttentionSpec& spec = model.config.layers[static_cast<size_t>(found->first)];
      stream.advance(layer.with_attention(make_attention(spec, found->second)));
    }
  }
  return stream.logits(0, ids.size(0));
}

TEST_P(LatentFamily, NativeFoldersKeepMixedLayers) {
  const GoldenModel golden(GetParam());
  const auto source = golden.open();
  const LatentModel model = mixed(*source);
  const at::Tensor expected = logits_in_memory(model, source, golden.ids());
  EXPECT_GT(relative_difference(expected, golden.logits().to(at::kDouble)), 0.01);  // it is another function
  TempFolder folder;
  for (const std::string format : {"hdf5", "native"}) {
    write_latent_model(model, *source, exact(folder / format, format));
    const auto copy = ModelSource::open(folder / format);
    EXPECT_EQ(copy->family().name(), source->family().name());
    EXPECT_EQ(copy->config().layers, model.config.layers) << format;
    EXPECT_LT(relative_difference(DecoderModel(copy, at::kDouble).forward(golden.ids()), expected), 1e-12) << format;
  }
}

TEST_P(LatentFamily, EveryLayerMayBeLatent) {
  const GoldenModel golden(GetParam());
  const auto source = golden.open();
  std::map<int64_t, LatentSizes> layers;
  for (int64_t layer = 0; layer < source->config().n_layers; ++layer) layers[layer] = kFirst;
  const LatentModel model = with_latent_layers(*source, layers);
  TempFolder folder;
  write_latent_model(model, *source, exact(folder / "out", "native"));
  const auto copy = ModelSource::open(folder / "out");
  EXPECT_EQ(copy->config().layers, model.config.layers);
  std::multiset<std::string> named, stored;
  for (const WeightSpec& weight : copy->family().weights(copy->config())) named.insert(weight.name);
  for (const TensorInfo& info : copy->tensors().tensors()) stored.insert(info.name);
  EXPECT_EQ(named, stored);
  const at::Tensor expected = logits_in_memory(model, source, golden.ids());
  EXPECT_LT(relative_difference(DecoderModel(copy, at::kDouble).forward(golden.ids()), expected), 1e-12);
}

TEST_P(LatentFamily, CachedForwardAndGenerationEqualFullForwards) {
  const GoldenModel golden(GetParam());
  TempFolder folder;
  {
    const auto source = golden.open();
    write_latent_model(mixed(*source), *source, exact(folder / "out", "hdf5"));
  }
  const DecoderModel model(ModelSource::open(folder / "out"), at::kDouble);
  const at::Tensor& ids = golden.ids();
  std::vector<KvCache> caches(static_cast<size_t>(model.config().n_layers));
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < ids.size(1);) {
    const int64_t count = first == 0 ? 7 : std::min<int64_t>(first % 2 + 1, ids.size(1) - first);
    parts.push_back(model.forward(ids.narrow(1, first, count), &caches, ids.size(1)));
    first += count;
  }
  EXPECT_LT(relative_difference(at::cat(parts, 1), model.forward(ids)), 1e-12);

  const at::Tensor row = ids[0].narrow(0, 0, 9).contiguous();
  std::vector<int64_t> all(row.const_data_ptr<int64_t>(), row.const_data_ptr<int64_t>() + row.numel());
  const GenerateResult result = generate(model, all, {.max_new_tokens = 8}, {});
  ASSERT_EQ(result.ids.size(), 8u);
  all.insert(all.end(), result.ids.begin(), result.ids.end());
  const at::Tensor next = model.forward(at::tensor(all).unsqueeze(0)).argmax(-1)[0];
  for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(result.ids[static_cast<size_t>(i)], next[8 + i].item<int64_t>());
  EXPECT_EQ(DecodeSession(model, {.max_tokens = 8}, nullptr).kv_bytes_per_token(), 8 * model.config().kv_elements());
}

INSTANTIATE_TEST_SUITE_P(Families, LatentFamily, testing::ValuesIn(grouped_golden_families()),
                         [](const auto& test) { return test.param.name; });

TEST(LatentModel, StockFormatsRefuse) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  const LatentModel model = mixed(*source);
  TempFolder folder;
  for (const char* format : {"hf", "gguf", "safetensors"}) {
    try {
      ModelWriter::create(model.config, *source, {.output = folder / "out", .format = format});
      FAIL() << format;
    } catch (const UnsupportedError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("latent"));
      EXPECT_THAT(error.help(), testing::AllOf(testing::HasSubstr("native"), testing::HasSubstr("hdf5")));
    }
  }
  EXPECT_TRUE(folder.names().empty());
}

TEST(LatentModel, WrittenAgainFromANativeFolder) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  TempFolder folder;
  write_latent_model(mixed(*source), *source, exact(folder / "first", "native"));
  const auto first = ModelSource::open(folder / "first");
  const auto writer = ModelWriter::create(first->config(), *first, {.output = folder / "second", .format = "hdf5"});
  for (const WeightSpec& weight : first->family().weights(first->config())) writer->copy(weight.name);
  writer->commit();
  EXPECT_EQ(ModelSource::open(folder / "second")->config().layers, first->config().layers);
  EXPECT_EQ(read_text(folder / "second/config.json"), read_text(folder / "first/config.json"));
}

TEST(LatentModel, NamesMissingAndMisshapenTensors) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  TempFolder folder;
  write_latent_model(mixed(*source), *source, exact(folder / "out", "native"));
  std::string config = read_text(folder / "out/config.json");
  const std::string rank = "\"kv_lora_rank\": 11";
  config.replace(config.find(rank), rank.size(), "\"kv_lora_rank\": 12");
  write_text(folder / "out/config.json", config);
  try {
    ModelSource::open(folder / "out");
    FAIL();
  } catch (const std::exception& error) {
    const std::string text = fmt::format("{}", fmt::join(describe_error(error).lines, "\n"));
    EXPECT_THAT(text, testing::HasSubstr("\"model.layers.0.self_attn.kv_a_proj_with_mqa.weight\" is (17, 48)"));
    EXPECT_THAT(text, testing::HasSubstr("kv_b_proj"));
  }
}

TEST(LatentModel, LayersSayWhenGroupedQueryIsNeeded) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  TempFolder folder;
  write_latent_model(mixed(*source), *source, exact(folder / "out", "native"));
  LayerStream stream(ModelSource::open(folder / "out"), at::zeros({1, 3}, at::kLong), {});
  const DecoderLayer layer = stream.load_layer();
  EXPECT_EQ(layer.attention().spec().kind, AttentionKind::latent);
  try {
    layer.grouped_query_attention();
    FAIL();
  } catch (const std::exception& error) {
    const ErrorReport report = describe_error(error);
    EXPECT_EQ(report.exit_code, ExitCode::unsupported);
    EXPECT_THAT(report.lines.back(), testing::HasSubstr("layer 0"));
  }
}

}  // namespace
}  // namespace cinch
