// Decode sessions on the CPU, the kernels in the warp emulator.
#include "model/decode_session.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include "attention/kernels/decode/emulated_decode.h"
#include "core/errors.h"
#include "model/generator.h"
#include "tests/attention/emulation.h"
#include "tests/model/decode_models.h"
#include "tests/model/session_run.h"

namespace cinch {
namespace {

constexpr int64_t kPrompt = 70, kTokens = 134;  // page edges in the prompt's pass and in steps

DecodeSessionOptions options_for(int64_t tokens, CacheFormat format = CacheFormat::sixteen_bit) {
  return {.max_tokens = tokens, .cache_format = format, .prefill_chunk = 24};
}

struct SessionCase {
  DecodeModelCase model;
  at::ScalarType dtype;
};
void PrintTo(const SessionCase& test_case, std::ostream* stream) {
  *stream << test_case.model.name << " in " << at::toString(test_case.dtype);
}

class DecodeSessionOfModel : public testing::TestWithParam<SessionCase> {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "fibres and ThreadSanitizer do not go together";
#endif
    source_ = make_decode_model(GetParam().model, folder_.path());
  }

  TempFolder folder_;
  std::shared_ptr<ModelSource> source_;
  const std::vector<int64_t> ids_ = random_ids(kTokens, 5);
};

TEST_P(DecodeSessionOfModel, IsAsNearTheExactModelAsThePlainPath) {
  const at::Tensor exact = exact_logits(source_, ids_, kPrompt);
  const DecoderModel model(source_, GetParam().dtype);
  DecodeSession plain(model, options_for(kTokens), nullptr);
  DecodeSession session(model, options_for(kTokens), &emulated_decode_functions());
  for (const DecodeChoice& choice : session.choices()) EXPECT_EQ(choice.kernel, DecodeKernel::mma) << choice.why;
  const double plain_error = distance(run_session(plain, ids_, kPrompt), exact);
  EXPECT_LT(distance(run_session(session, ids_, kPrompt), exact), 1.5 * plain_error);
  EXPECT_LT(plain_error, GetParam().dtype == at::kHalf ? 0.005 : 0.04);
  EXPECT_EQ(session.lengths(), std::vector<int64_t>{kTokens});
  // What the first layer is given does not depend on the kernels, so its cache is that of the plain path, bit by bit.
  expect_same_rows(session.cached(0, 0), plain.cached(0, 0));
  // Later layers' caches tell of every token's attention in the layers before.
  for (int64_t layer = 1; layer < model.config().n_layers; ++layer) {
    const double worst = worst_token(session.cached(layer, 0), plain.cached(layer, 0));
    EXPECT_LT(worst, GetParam().dtype == at::kHalf ? 0.006 : 0.04) << layer;
    RecordProperty("worst" + std::to_string(layer), std::to_string(worst));
  }
}

std::vector<SessionCase> session_cases() {
  std::vector<SessionCase> cases;
  for (const DecodeModelCase& model : decode_models()) cases.push_back({model, at::kBFloat16});
  for (const DecodeModelCase& model : decode_models()) {
    if (model.name == "gemma2_narrow" || model.name == "qwen3_latent" || model.name == "gemma2_latent")
      cases.push_back({model, at::kHalf});
  }
  return cases;
}

std::string test_name(const testing::TestParamInfo<SessionCase>& info) {
  return info.param.model.name + (info.param.dtype == at::kHalf ? "_fp16" : "_bf16");
}

INSTANTIATE_TEST_SUITE_P(Models, DecodeSessionOfModel, testing::ValuesIn(session_cases()), test_name);

struct PackedCase {
  DecodeModelCase model;
  CacheFormat format;
};
void PrintTo(const PackedCase& test_case, std::ostream* stream) {
  *stream << test_case.model.name << ", " << name_of(test_case.format);
}

class PackedDecodeSession : public testing::TestWithParam<PackedCase> {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "fibres and ThreadSanitizer do not go together";
#endif
  }
};

/// What the kernels hold in bytes and what KvCache holds in rounded numbers, after a prompt in pieces and steps.
TEST_P(PackedDecodeSession, HoldsTheBitsOfItsEmulation) {
  const TempFolder folder;
  const auto source = make_decode_model(GetParam().model, folder.path());
  const std::vector<int64_t> ids = random_ids(kTokens, 6);
  const DecoderModel model(source, at::kBFloat16);
  DecodeSession emulated(model, options_for(kTokens, GetParam().format), nullptr);
  DecodeSession session(model, options_for(kTokens, GetParam().format), &emulated_decode_functions());
  EXPECT_EQ(session.kernel_name(), "mma");
  EXPECT_TRUE(emulated.emulates_cache());
  EXPECT_FALSE(session.emulates_cache());
  EXPECT_EQ(session.kv_bytes_per_token(), emulated.kv_bytes_per_token());
  EXPECT_EQ(session.kv_bytes(100), emulated.kv_bytes(100));
  const at::Tensor exact = exact_logits(source, ids, kPrompt);
  const double error = distance(run_session(emulated, ids, kPrompt), exact);
  EXPECT_LT(distance(run_session(session, ids, kPrompt), exact), 1.5 * error);
  expect_same_rows(session.cached(0, 0), emulated.cached(0, 0));
}

std::vector<PackedCase> packed_cases() {
  std::vector<PackedCase> cases;
  for (const DecodeModelCase& model : decode_models()) {
    if (model.latent.empty() || model.name == "mixed") continue;
    for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4})
      cases.push_back({model, format});
  }
  return cases;
}

std::string packed_name(const testing::TestParamInfo<PackedCase>& info) {
  return info.param.model.name + "_" + name_of(info.param.format);
}

INSTANTIATE_TEST_SUITE_P(Models, PackedDecodeSession, testing::ValuesIn(packed_cases()), packed_name);

class DecodeSessionTest : public warp::EmulationTest {
 protected:
  /// Of decode_models().
  std::shared_ptr<ModelSource> open(const std::string& name) {
    for (const DecodeModelCase& model : decode_models()) {
      if (model.name == name) return make_decode_model(model, folder_ / name);
    }
    throw std::runtime_error("no model " + name);
  }
  TempFolder folder_;
};

TEST_F(DecodeSessionTest, WithoutKernelsIsTheModelWithItsCache) {
  const DecoderModel model(ModelSource::open(repo_file("examples/stories260K")), at::kFloat);
  const std::vector<int64_t> ids = random_ids(40, 2);
  DecodeSession session(model, {.max_tokens = 40, .prefill_chunk = 8}, nullptr);
  const at::Tensor logits = run_session(session, ids, 16);
  std::vector<KvCache> caches(5);
  const auto forward = [&](int64_t first, int64_t count) {
    return model.forward(at::tensor(ids).narrow(0, first, count).unsqueeze(0), &caches, 40)[0][-1];
  };
  forward(0, 8);
  EXPECT_LT(distance(logits[0], forward(8, 8)), 1e-6);  // one row through the head in place of eight
  for (int64_t i = 0; i < 24; ++i) EXPECT_TRUE(at::equal(logits[i + 1], forward(16 + i, 1))) << i;
}

TEST_F(DecodeSessionTest, SaysWhyThereIsNoKernel) {
  const auto source = ModelSource::open(repo_file("examples/stories260K"));
  const auto why = [&](at::ScalarType dtype, const DecodeFunctions* functions, DecodeKernel kernel) {
    const DecoderModel model(source, dtype);
    DecodeSession session(model, {.max_tokens = 8, .kernel = kernel}, functions);
    EXPECT_EQ(session.kernel_name(), "attend");
    EXPECT_EQ(session.explain().size(), 1u);
    EXPECT_FALSE(session.uses_graph());
    EXPECT_EQ(session.why_no_graph(), "layer 0 has no decode kernel");
    return session.explain().front();
  };
  const DecodeFunctions* kernels = &emulated_decode_functions();
  EXPECT_THAT(why(at::kBFloat16, kernels, DecodeKernel::automatic),
              testing::AllOf(testing::StartsWith("layers 0 to 4: attend ("),
                             testing::HasSubstr("head_dim must be a multiple of 8 in 32..256, found 8")));
  EXPECT_THAT(why(at::kFloat, kernels, DecodeKernel::automatic), testing::HasSubstr("take bf16 and fp16, not Float"));
  EXPECT_THAT(why(at::kBFloat16, nullptr, DecodeKernel::automatic), testing::HasSubstr("no decode kernels"));
  EXPECT_THAT(why(at::kBFloat16, kernels, DecodeKernel::attend), testing::HasSubstr("asked for"));
}

TEST_F(DecodeSessionTest, AForcedKernelCoversOrFails) {
  const DecoderModel stories(ModelSource::open(repo_file("examples/stories260K")), at::kBFloat16);
  const DecodeFunctions* kernels = &emulated_decode_functions();
  try {
    DecodeSession session(stories, {.max_tokens = 8, .kernel = DecodeKernel::mma}, kernels);
    FAIL() << "no kernel covers heads of 8";
  } catch (const std::exception& fault) {
    EXPECT_THAT(fault.what(), testing::HasSubstr("layer 0"));
  }
  const DecoderModel model(open("mha"), at::kBFloat16);
  EXPECT_THROW(DecodeSession(model, {.max_tokens = 8, .kernel = DecodeKernel::sm90}, kernels), std::exception);
  EXPECT_EQ(DecodeSession(model, {.max_tokens = 8, .kernel = DecodeKernel::mma}, kernels).kernel_name(), "mma");
  EXPECT_EQ(DecodeSession(model, {.max_tokens = 8, .kernel = DecodeKernel::attend}, kernels).kernel_name(), "attend");
}

/// Layers with kernels beside layers without: the bundled model's heads of 8 have none, a latent has.
TEST_F(DecodeSessionTest, MixedLayersGenerateWhatThePlainPathDoes) {
  const auto stories = ModelSource::open(repo_file("examples/stories260K"));
  write_latent_model(with_latent_layers(*stories, {{3, {.rank = 16, .nope = 8, .rotary = 8, .value = 8}}}), *stories,
                     {.output = folder_ / "mixed", .format = "native", .dtype = "bf16"});
  const DecoderModel model(ModelSource::open(folder_ / "mixed"), at::kHalf);
  const std::vector<int64_t> prompt = random_ids(20, 4);
  const GenerateOptions options{.max_new_tokens = 60};
  DecodeSession session(model, {.max_tokens = 80}, &emulated_decode_functions());
  EXPECT_EQ(session.kernel_name(), "attend, mma");
  EXPECT_EQ(session.explain().size(), 3u);
  EXPECT_EQ(session.why_no_graph(), "layer 0 has no decode kernel");
  EXPECT_EQ(generate(session, prompt, options, {}).ids, generate(model, prompt, options, {}).ids);
}

/// Sequences of different lengths in one batch are what each is alone.
TEST_F(DecodeSessionTest, SequencesOfABatchDoNotMeet) {
  const std::vector<int64_t> lengths = {3, 64, 1, 90};
  constexpr int64_t kSteps = 12;
  for (const char* name : {"gqa_yarn", "gemma2_latent"}) {
    SCOPED_TRACE(name);
    const auto source = open(name);
    const DecoderModel model(source, at::kBFloat16);
    DecodeSessionOptions options = options_for(128);
    options.batch = static_cast<int64_t>(lengths.size());
    DecodeSession batch(model, options, &emulated_decode_functions());
    std::vector<std::vector<int64_t>> ids, prompts;
    for (const int64_t length : lengths) {
      ids.push_back(random_ids(length + kSteps, 20 + static_cast<uint64_t>(length)));
      prompts.emplace_back(ids.back().begin(), ids.back().begin() + length);
    }
    std::vector<at::Tensor> logits = {batch.prefill(prompts)};
    for (int64_t i = 0; i < kSteps; ++i) {
      at::Tensor next = at::empty({options.batch}, at::kLong);
      for (size_t b = 0; b < ids.size(); ++b)
        next[static_cast<int64_t>(b)] = ids[b][static_cast<size_t>(lengths[b] + i)];
      logits.push_back(batch.step(next).clone());
    }
    const at::Tensor together = at::stack(logits, 1);  // (B, steps + 1, V)
    for (size_t b = 0; b < ids.size(); ++b) {
      SCOPED_TRACE(b);
      DecodeSession alone(model, options_for(128), &emulated_decode_functions());
      const at::Tensor exact = exact_logits(source, ids[b], lengths[b]);
      const double error = distance(run_session(alone, ids[b], lengths[b]), exact);
      EXPECT_LT(distance(together[static_cast<int64_t>(b)], exact), 1.2 * error + 1e-3);
      EXPECT_EQ(batch.lengths()[b], lengths[b] + kSteps);
      const CachedRows held = batch.cached(0, static_cast<int64_t>(b)), expected = alone.cached(0, 0);
      EXPECT_EQ(held.first, expected.first);
      EXPECT_LT(distance(held.k, expected.k), 0.01);
    }
  }
}

TEST_F(DecodeSessionTest, ARecordedStepIsTheStep) {
  const DecoderModel model(open("mixed"), at::kBFloat16);
  const std::vector<int64_t> prompt = random_ids(30, 8);
  std::vector<std::vector<int64_t>> ids;
  for (const bool graphs : {true, false}) {
    DecodeSessionOptions options = options_for(90);
    options.graphs = graphs;
    DecodeSession session(model, options, &emulated_decode_functions());
    EXPECT_EQ(session.uses_graph(), graphs);
    EXPECT_EQ(session.why_no_graph(), graphs ? "" : "not asked for");
    ids.push_back(generate(session, prompt, {.max_new_tokens = 60}, {}).ids);
  }
  EXPECT_EQ(ids[0].size(), 60u);
  EXPECT_EQ(ids[0], ids[1]);
}

TEST_F(DecodeSessionTest, AWindowsLayersHoldFewPages) {
  const DecoderModel model(open("gemma2"), at::kBFloat16);  // window 40 in layers 0 and 2 of 3
  DecodeSession session(model, options_for(1000), &emulated_decode_functions());
  const int64_t page = 2 * 2 * 64 * 32 * 2;  // keys and values, 2 KV heads
  EXPECT_EQ(session.kv_bytes_allocated(), (2 + 16 + 2) * page);
  EXPECT_EQ(session.kv_bytes_per_token(), 3 * page / 64);
  EXPECT_EQ(session.kv_bytes(10), 10 * 3 * page / 64);
}

TEST_F(DecodeSessionTest, FilledCachesGoOn) {
  const DecoderModel model(open("mixed"), at::kBFloat16);
  for (const DecodeFunctions* functions :
       {&emulated_decode_functions(), static_cast<const DecodeFunctions*>(nullptr)}) {
    DecodeSession session(model, {.batch = 2, .max_tokens = 100}, functions);
    session.fill(90);
    EXPECT_EQ(session.lengths(), (std::vector<int64_t>{90, 90}));
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(at::isfinite(session.step_greedy()).all().item<bool>());
    EXPECT_EQ(session.cached(0, 1).k.size(2), 93);
  }
}

TEST_F(DecodeSessionTest, RefusesWhatDoesNotFit) {
  const DecoderModel model(open("mha"), at::kBFloat16);
  EXPECT_THROW(DecodeSession(model, {.batch = 0, .max_tokens = 8}, nullptr), UsageError);
  EXPECT_THROW(DecodeSession(model, {.max_tokens = 0}, nullptr), UsageError);
  EXPECT_THROW(DecodeSession(model, {.max_tokens = 8, .cache_format = CacheFormat::int8}, nullptr), UnsupportedError);
  for (const DecodeFunctions* functions :
       {&emulated_decode_functions(), static_cast<const DecodeFunctions*>(nullptr)}) {
    DecodeSession session(model, {.max_tokens = 5}, functions);
    EXPECT_THROW(session.prefill({{1}, {2}}), UsageError);
    EXPECT_THROW(session.prefill({{}}), UsageError);
    EXPECT_THROW(session.prefill({{1, 2, 3, 4, 5, 6}}), UsageError);
    session.prefill({{1, 2, 3}});
    EXPECT_THROW(session.prefill({{1}}), UsageError);
    EXPECT_THROW(session.step(at::zeros({2}, at::kLong)), ShapeError);
    session.step_greedy();
    session.step_greedy();
    EXPECT_THROW(session.step_greedy(), UsageError);
    EXPECT_EQ(session.lengths(), std::vector<int64_t>{5});
  }
}

TEST(DecodeKernelNames, AreParsed) {
  for (const DecodeKernel kernel :
       {DecodeKernel::automatic, DecodeKernel::attend, DecodeKernel::mma, DecodeKernel::sm90})
    EXPECT_EQ(parse_decode_kernel(name_of(kernel)), kernel);
  EXPECT_THROW(parse_decode_kernel("fast"), UsageError);
}

}  // namespace
}  // namespace cinch
