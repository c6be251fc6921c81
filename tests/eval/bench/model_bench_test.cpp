#include "eval/bench/model_bench.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include "attention/kernels/decode/emulated_decode.h"
#include "core/errors.h"
#include "eval/bench/decode_run.h"
#include "eval/bench/random_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

std::shared_ptr<ModelSource> stories() { return ModelSource::open(repo_file("examples/stories260K")); }

/// The same with a latent of 24 + 8 in every layer, as a config alone.
std::shared_ptr<ModelSource> latent_stories() {
  ModelConfig config = stories()->config();
  for (AttentionSpec& spec : config.layers) {
    spec.kind = AttentionKind::latent;
    spec.kv_lora_rank = 24;
    spec.qk_nope_head_dim = spec.v_head_dim = spec.head_dim;
    spec.qk_rope_head_dim = 8;
    spec.rope_inv_freq = {1, 0.1, 0.01, 0.001};
  }
  return config_model("latent stories", std::move(config));
}

ModelBenchOptions small_run() {
  ModelBenchOptions options;
  options.batches = {1, 3};
  options.contexts = {64, 100};
  options.steps = 3;
  options.copy_bytes_per_second = 1e9;
  options.free_memory = [] { return int64_t{1} << 30; };
  return options;
}

std::vector<ModelBenchRow> rows_of(const std::vector<BenchModel>& models, const ModelBenchOptions& options) {
  std::vector<ModelBenchRow> rows;
  bench_models(models, options, [&](const ModelBenchRow& row) { rows.push_back(row); });
  return rows;
}

TEST(ModelBench, BytesOfEveryFormat) {
  const ModelConfig grouped = stories()->config();  // 5 layers of 4 heads x 8
  EXPECT_EQ(kv_bytes_per_token(grouped, CacheFormat::sixteen_bit, 2), 5 * 2 * 4 * 8 * 2);
  EXPECT_EQ(kv_bytes_per_token(grouped, CacheFormat::sixteen_bit, 4), 5 * 2 * 4 * 8 * 4);
  EXPECT_EQ(kv_bytes_per_token(grouped, CacheFormat::int4, 2), 5 * 2 * 4 * 8 * 2) << "grouped caches stay";
  const ModelConfig latent = latent_stories()->config();
  EXPECT_EQ(kv_bytes_per_token(latent, CacheFormat::sixteen_bit, 2), 5 * 32 * 2);
  EXPECT_EQ(kv_bytes_per_token(latent, CacheFormat::int8, 2), 5 * (32 + 4));
  EXPECT_EQ(kv_bytes_per_token(latent, CacheFormat::int4, 2), 5 * (16 + 2.0 * 2 * 32 / 64));
  EXPECT_EQ(kv_bytes_seen(latent, CacheFormat::int8, 2, 7, 1000), 7 * 1000 * 5 * 36);
}

TEST(ModelBench, WindowsLimitWhatAStepReads) {
  ModelConfig config = stories()->config();
  config.layers[0].window = config.layers[2].window = 100;
  const int64_t layer = 2 * 4 * 8 * 2;
  EXPECT_EQ(kv_bytes_seen(config, CacheFormat::sixteen_bit, 2, 3, 1000), 3 * layer * (3 * 1000 + 2 * 100));
  EXPECT_EQ(kv_bytes_seen(config, CacheFormat::sixteen_bit, 2, 3, 50), 3 * layer * 5 * 50);
}

TEST(ModelBench, WeightsOfAStep) {
  const auto source = stories();
  const WeightBytes tied = weight_bytes(source->config(), source->family(), 2);
  // Embedding 512 x 64, per layer q, k, v, o, three of the MLP, two norms; the last norm.
  const int64_t layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 172 * 64 + 2 * 64;
  EXPECT_EQ(tied.all, 2 * (512 * 64 + 5 * layer + 64));
  EXPECT_EQ(tied.read_per_step, tied.all) << "the embedding is the head too";
  ModelConfig untied = source->config();
  untied.tie_word_embeddings = false;
  const WeightBytes two = weight_bytes(untied, source->family(), 2);
  EXPECT_EQ(two.all, tied.all + 2 * 512 * 64);
  EXPECT_EQ(two.read_per_step, tied.all);
}

TEST(ModelBench, RandomModelsHaveTheShapesOfTheirFamily) {
  const auto source = latent_stories();
  at::manual_seed(1);
  const TensorReader read = random_reader(source->config(), source->family(), at::kFloat, at::kCPU);
  for (const WeightSpec& weight : source->family().weights(source->config()))
    EXPECT_EQ(read(weight.name).sizes().vec(), weight.shape) << weight.name;
  EXPECT_TRUE(read("model.norm.weight").eq(1).all().item<bool>());
  EXPECT_NEAR(read("model.embed_tokens.weight").std().item<double>(), 0.02, 1e-3);
  EXPECT_THROW(read("model.no.such"), CheckpointError);
  EXPECT_THROW(source->tensors().read("model.norm.weight"), CheckpointError);
  const DecoderModel model(source, read);
  EXPECT_TRUE(at::isfinite(model.forward(at::arange(3).unsqueeze(0))).all().item<bool>());
}

TEST(ModelBench, BeforeAndAfter) {
  const std::vector<BenchModel> models = {{"before", stories()}, {"after", latent_stories(), true}};
  const std::vector<ModelBenchRow> rows = rows_of(models, small_run());
  ASSERT_EQ(rows.size(), 8u);
  for (size_t i = 0; i < rows.size(); ++i) {
    const ModelBenchRow& row = rows[i];
    EXPECT_EQ(row.model, i < 4 ? "before" : "after");
    EXPECT_EQ(row.batch, i / 2 % 2 == 0 ? 1 : 3);
    EXPECT_EQ(row.context, i % 2 == 0 ? 64 : 100);
    EXPECT_EQ(row.status, "ok") << row.reason;
    EXPECT_EQ(row.kernel, "attend");
    EXPECT_EQ(row.steps, 3);
    EXPECT_EQ(row.kv_bytes_per_token, i < 4 ? 5 * 64 * 4 : 5 * 32 * 4);
    EXPECT_EQ(row.cache_bytes, row.kv_bytes_per_token * static_cast<double>(row.batch * row.context));
    EXPECT_DOUBLE_EQ(row.tokens_per_second(), static_cast<double>(row.batch) / row.seconds);
    const Json json = row_json(row, small_run());
    const double speed = static_cast<double>(row.cache_bytes + row.read_weight_bytes) / row.seconds;
    EXPECT_NEAR(json["share_of_copy"].get<double>(), speed / 1e9, 1e-9);
    EXPECT_EQ(json["random_weights"], i >= 4);
  }
}

TEST(ModelBench, CachesAreFilledAndGrowByTheSteps) {
  const DecoderModel model(stories(), at::kFloat);
  for (const int64_t context : {64, 100}) {
    const DecodeRunOptions options{.batch = 2, .context = context, .steps = 5};
    const auto run = plain_run(model, options);
    const int64_t token = 2 * 5 * 64 * 4;
    EXPECT_EQ(run->cache_bytes_allocated(), token * (context - 5));
    for (int i = 0; i < 5; ++i) run->step();
    EXPECT_EQ(run->cache_bytes_allocated(), token * context);
  }
}

TEST(ModelBench, WhatAPlainRunTakes) {
  const ModelConfig config = stories()->config();  // 64 numbers per token and layer, 5 layers
  // 59 tokens take one block of 64, which 5 steps fill; one layer more while it is filled.
  EXPECT_EQ(plain_cache_bytes(config, 4, {.batch = 2, .context = 64, .steps = 5}), (5 + 1) * 64 * 64 * 4 * 2);
  // 64 tokens fill their block: the next step doubles it.
  EXPECT_EQ(plain_cache_bytes(config, 4, {.batch = 1, .context = 69, .steps = 5}), (5 * 128 + 64) * 64 * 4);
}

class EmulatedModelBench : public testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "fibres and ThreadSanitizer do not go together";
#endif
  }
};

/// A model whose sizes the kernels take: two layers, one grouped-query and one latent.
std::shared_ptr<ModelSource> kernel_sized(bool latent) {
  ModelConfig config = stories()->config();
  config.layers.resize(2);
  config.n_layers = 2;
  for (AttentionSpec& spec : config.layers) {
    spec.n_heads = 2;
    spec.n_kv_heads = 1;
    spec.head_dim = spec.rope.rotary_dim = 32;
    spec.scale = 0.2;
  }
  AttentionSpec& last = config.layers.back();
  if (latent) {
    last.kind = AttentionKind::latent;
    last.kv_lora_rank = 32;
    last.qk_nope_head_dim = last.v_head_dim = 16;
    last.qk_rope_head_dim = 8;
    last.rope_inv_freq = {1, 0.1, 0.01, 0.001};
  }
  return config_model("two layers", std::move(config));
}

TEST_F(EmulatedModelBench, SessionsRunTheKernels) {
  ModelBenchOptions options = small_run();
  options.dtype = at::kBFloat16;
  options.functions = &emulated_decode_functions();
  options.batches = {2};
  options.contexts = {70};
  options.formats = {CacheFormat::sixteen_bit};
  for (const bool latent : {false, true}) {
    const std::vector<ModelBenchRow> rows = rows_of({{"two layers", kernel_sized(latent), true}}, options);
    ASSERT_EQ(rows.size(), 1u);
    EXPECT_EQ(rows[0].status, "ok") << rows[0].reason;
    EXPECT_EQ(rows[0].kernel, "mma");
    EXPECT_EQ(rows[0].reason, "");
    EXPECT_EQ(rows[0].kv_bytes_per_token, (64 + (latent ? 40 : 64)) * 2);
  }
  options.kernel = DecodeKernel::attend;
  EXPECT_EQ(rows_of({{"two layers", kernel_sized(true), true}}, options)[0].kernel, "attend");
  options.kernel = DecodeKernel::sm90;
  EXPECT_EQ(rows_of({{"two layers", kernel_sized(true), true}}, options)[0].status, "not covered");
}

TEST_F(EmulatedModelBench, WhatASessionTakes) {
  const auto source = kernel_sized(true);
  const DecoderModel model(source, random_reader(source->config(), source->family(), at::kBFloat16, at::kCPU));
  const DecodeRunOptions options{.batch = 3, .context = 70, .steps = 4};
  const auto run = make_decode_run(model, options, &emulated_decode_functions());
  EXPECT_EQ(run->cache_bytes_allocated(), 3 * 128 * (64 + 40) * 2);
  EXPECT_EQ(session_cache_bytes(source->config(), options), run->cache_bytes_allocated());
  for (int i = 0; i < 4; ++i) run->step();
  EXPECT_THROW(run->step(), UsageError) << "the context was filled up to what the steps leave";
}

TEST(ModelBench, CachesOfFewerBitsNeedKernels) {
  ModelBenchOptions options = small_run();
  options.formats = {CacheFormat::sixteen_bit, CacheFormat::int8};
  options.batches = {1};
  options.contexts = {64};
  const std::vector<ModelBenchRow> rows = rows_of({{"before", stories()}, {"after", latent_stories(), true}}, options);
  ASSERT_EQ(rows.size(), 3u) << "grouped-query attention has one cache format";
  EXPECT_EQ(rows[1].status, "ok");
  EXPECT_EQ(rows[2].status, "not covered");
  EXPECT_THAT(rows[2].reason, testing::HasSubstr("int8 without decode kernels would be emulated"));
  EXPECT_EQ(rows[2].kv_bytes_per_token, 5 * 36);
}

TEST(ModelBench, WhatDoesNotFitSaysSo) {
  ModelBenchOptions options = small_run();
  options.batches = {1};
  options.free_memory = [] { return int64_t{1400000}; };  // the weights (1.04 MB) and the smaller cache
  options.contexts = {64, 4096};
  const std::vector<ModelBenchRow> rows = rows_of({{"stories", stories()}}, options);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].status, "ok") << rows[0].reason;
  EXPECT_EQ(rows[1].status, "does not fit");
  EXPECT_THAT(rows[1].reason, testing::HasSubstr("caches and logits take"));
  options.free_memory = [] { return int64_t{1000000}; };
  for (const ModelBenchRow& row : rows_of({{"stories", stories()}}, options)) {
    EXPECT_EQ(row.status, "does not fit");
    EXPECT_THAT(row.reason, testing::HasSubstr("the weights take"));
    EXPECT_FALSE(row_json(row, options).contains("us"));
  }
}

}  // namespace
}  // namespace cinch
