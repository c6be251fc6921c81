// Decode sessions by the plug-in's kernels on a GPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/generator.h"
#include "model/mixed_layers.h"
#include "tests/model/decode_models.h"
#include "tests/model/session_run.h"
#include "tests/support/cuda_device.h"

namespace cinch {
namespace {

class CudaDecodeSession : public CudaTest {
 protected:
  static constexpr int64_t kPrompt = 70, kTokens = 150;

  static DecodeSessionOptions options(CacheFormat format = CacheFormat::sixteen_bit, bool graphs = true) {
    return {.max_tokens = kTokens, .cache_format = format, .graphs = graphs, .prefill_chunk = 24};
  }
  static at::Device device() { return {at::kCUDA, 0}; }
  /// What a model can be decoded in: fewer bits where it has latent layers.
  static std::vector<CacheFormat> formats_of(const ModelConfig& config) {
    if (!has_latent_layers(config)) return {CacheFormat::sixteen_bit};
    return {CacheFormat::sixteen_bit, CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4};
  }

  const std::vector<int64_t> ids_ = random_ids(kTokens, 5);
};

TEST_F(CudaDecodeSession, IsAsNearTheExactModelAsThePlainPath) {
  for (const DecodeModelCase& test_case : decode_models()) {
    for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
      SCOPED_TRACE(test_case.name + " in " + at::toString(dtype));
      const TempFolder folder;
      const auto source = make_decode_model(test_case, folder.path());
      const at::Tensor exact = exact_logits(source, ids_, kPrompt);
      const DecoderModel model(source, dtype, device());
      DecodeSession plain(model, options(), nullptr), session(model, options(), plugin_decode_functions());
      for (const DecodeChoice& choice : session.choices()) EXPECT_NE(choice.kernel, DecodeKernel::attend) << choice.why;
      EXPECT_TRUE(session.uses_graph()) << session.why_no_graph();
      const double plain_error = distance(run_session(plain, ids_, kPrompt).cpu(), exact);
      EXPECT_LT(distance(run_session(session, ids_, kPrompt).cpu(), exact), 1.5 * plain_error);
    }
  }
}

TEST_F(CudaDecodeSession, GraphsGiveTheSameBits) {
  for (const DecodeModelCase& test_case : decode_models()) {
    const TempFolder folder;
    const DecoderModel model(make_decode_model(test_case, folder.path()), at::kBFloat16, device());
    for (const CacheFormat format : formats_of(model.config())) {
      SCOPED_TRACE(test_case.name + ", " + name_of(format));
      DecodeSession recorded(model, options(format, true), plugin_decode_functions());
      DecodeSession launched(model, options(format, false), plugin_decode_functions());
      EXPECT_TRUE(recorded.uses_graph());
      EXPECT_TRUE(at::equal(run_session(recorded, ids_, kPrompt), run_session(launched, ids_, kPrompt)));
    }
  }
}

/// The packed cache of the append kernel and the emulated one: the first layer's inputs are the same.
TEST_F(CudaDecodeSession, CachesHoldTheBitsOfTheirEmulation) {
  for (const DecodeModelCase& test_case : decode_models()) {
    const TempFolder folder;
    const DecoderModel model(make_decode_model(test_case, folder.path()), at::kBFloat16, device());
    for (const CacheFormat format : formats_of(model.config())) {
      SCOPED_TRACE(test_case.name + ", " + name_of(format));
      DecodeSession session(model, options(format), plugin_decode_functions()), plain(model, options(format), nullptr);
      run_session(session, ids_, kPrompt);
      run_session(plain, ids_, kPrompt);
      expect_same_rows(session.cached(0, 0), plain.cached(0, 0));
    }
  }
}

TEST_F(CudaDecodeSession, SequencesOfABatchDoNotMeet) {
  const TempFolder folder;
  const auto source = make_decode_model(decode_models().front(), folder.path());
  const DecoderModel model(source, at::kHalf, device());
  DecodeSessionOptions batched = options();
  batched.batch = 3;
  DecodeSession session(model, batched, plugin_decode_functions());
  const std::vector<std::vector<int64_t>> prompts = {random_ids(3, 1), random_ids(64, 2), random_ids(90, 3)};
  session.prefill(prompts);
  std::vector<std::vector<int64_t>> together(3);
  for (int step = 0; step < 20; ++step) {
    const std::vector<int64_t> next = session.next_ids();
    for (size_t b = 0; b < 3; ++b) together[b].push_back(next[b]);
    session.step_greedy();
  }
  for (size_t b = 0; b < 3; ++b) {
    DecodeSession alone(model, options(), plugin_decode_functions());
    EXPECT_EQ(generate(alone, prompts[b], {.max_new_tokens = 20}, {}).ids, together[b]) << b;
  }
}

}  // namespace
}  // namespace cinch
