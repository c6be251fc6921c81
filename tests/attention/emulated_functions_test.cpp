// The decode kernels as the runtime calls them: sizes, plan, run and append through the table of functions.
#include "attention/kernels/decode/decode_functions.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>
#include <string>

#include "attention/kernels/decode/emulated_decode.h"
#include "tests/attention/append_grid.h"
#include "tests/attention/decode_grid.h"
#include "tests/attention/emulation.h"

namespace cinch::decode {
namespace {

class EmulatedFunctions : public EmulationTest {};

TEST_F(EmulatedFunctions, PlanAndRunWithMemoryOfTheCaller) {
  const DecodeFunctions& functions = emulated_decode_functions();
  std::vector<DecodeCase> cases = {latent_case(40, 16, 9, {70, 0, 130}), latent_case(136, 24, 20, {65}),
                                   grouped_case(48, 3, 3, {1, 200})};
  cases[0].v_head_dim = 24;
  vary(cases);
  for (const DecodeCase& c : cases) {
    SCOPED_TRACE(name_of(c));
    DecodeArrays arrays = CaseBuilder(c, 7).build();
    arrays.point();
    CinchDecodeStep& step = arrays.step;
    CinchDecodeSizes sizes{};
    std::array<char, 256> error{};
    ASSERT_EQ(functions.sizes(&step, &sizes, error.data(), error.size()), 0) << error.data();
    EXPECT_EQ(sizes.parts, 2);
    std::vector<int32_t> plan(sizes.plan_bytes / sizeof(int32_t), -1);
    std::vector<uint64_t> scratch(sizes.scratch_bytes / sizeof(uint64_t), 0);
    step.plan = plan.data();
    step.scratch = scratch.data();
    ASSERT_EQ(functions.plan(plan.data(), sizes.parts, step.lengths, step.batch, step.window, nullptr, error.data(),
                             error.size()),
              0)
        << error.data();
    ASSERT_EQ(functions.run(&step, nullptr, error.data(), error.size()), 0) << error.data();
    const DecodeErrors errors = compare(arrays, reference_decode(step));
    EXPECT_TRUE(errors.good()) << errors.text();
  }
}

/// A decode step over the caches that an append has filled, with queries of its own.
struct Decoding {
  CinchDecodeStep step{};
  std::vector<uint16_t> q, out;
  std::vector<float> lse;
  std::vector<int32_t> plan;
  std::vector<uint64_t> scratch;

  explicit Decoding(const CinchCacheAppend& a) {
    step.kind = a.kind;
    step.type = a.type;
    step.cache_format = a.cache_format;
    step.batch = a.batch;
    step.n_heads = a.n_heads;
    step.n_kv_heads = a.n_kv_heads;
    step.head_dim = a.head_dim;
    step.kv_lora_rank = a.kv_lora_rank;
    step.qk_rope_head_dim = a.qk_rope_head_dim;
    step.rope_per_kv_head = a.rope_per_kv_head;
    step.key_scales = a.key_scales;
    step.keys = a.keys;
    step.values = a.values;
    step.open = a.open;
    step.block_table = a.block_table;
    step.block_table_stride = a.block_table_stride;
    step.lengths = a.lengths;
    const int width = query_width(step);
    step.scale = 1 / std::sqrt(static_cast<float>(width));
    step.q_head_stride = width;
    step.q_batch_stride = a.n_heads * width;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < a.batch * step.q_batch_stride; ++i) q.push_back(Bf16::from_float(normal(random)));
    step.q = q.data();
    step.out_head_stride = out_width(step);
    step.out_batch_stride = a.n_heads * step.out_head_stride;
    out.resize(static_cast<size_t>(a.batch * step.out_batch_stride));
    lse.resize(static_cast<size_t>(a.batch * a.n_heads));
    step.out = out.data();
    step.lse = lse.data();
  }

  std::string run() {
    const DecodeFunctions& functions = emulated_decode_functions();
    std::array<char, 256> error{};
    CinchDecodeSizes sizes{};
    if (functions.sizes(&step, &sizes, error.data(), error.size()) != 0) return error.data();
    plan.resize(sizes.plan_bytes / sizeof(int32_t));
    scratch.resize(sizes.scratch_bytes / sizeof(uint64_t));
    step.plan = plan.data();
    step.scratch = scratch.data();
    functions.plan(plan.data(), sizes.parts, step.lengths, step.batch, 0, nullptr, error.data(), error.size());
    functions.run(&step, nullptr, error.data(), error.size());
    return error.data();
  }
};

/// Append and decode agree on where everything stands.
TEST_F(EmulatedFunctions, DecodesWhatWasAppended) {
  const std::vector<int32_t> lengths = {130, 64, 7};
  std::vector<AppendCase> cases(3, latent_append(40, 16, 130, lengths));
  cases[1].key_scales = true;
  cases[1].rope_per_kv_head = true;
  cases[2].paged = false;
  cases.push_back(grouped_append(48, 20, 9, 3, 130, lengths));
  cases.push_back(cases.back());
  cases.back().tokens_first = true;
  for (const int format : {CINCH_CACHE_INT8, CINCH_CACHE_FP8, CINCH_CACHE_INT4}) {
    cases.push_back(latent_append(40, 16, 130, lengths));
    cases.back().format = format;
    cases.push_back(cases.back());
    cases.back().key_scales = true;
    cases.back().rope_per_kv_head = true;
  }
  for (const AppendCase& c : cases) {
    SCOPED_TRACE(name_of(c));
    AppendArrays arrays = AppendBuilder(c, 7).build();
    arrays.point();
    std::array<char, 256> error{};
    ASSERT_EQ(emulated_decode_functions().append(&arrays.append, nullptr, error.data(), error.size()), 0)
        << error.data();
    Decoding decoding(arrays.append);
    EXPECT_EQ(decoding.run(), "");
    const ReferenceResult expected = reference_decode(decoding.step);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < expected.out.size(); ++i) {
      difference += std::pow(static_cast<double>(Bf16::to_float(decoding.out[i])) - expected.out[i], 2);
      norm += expected.out[i] * expected.out[i];
    }
    EXPECT_LT(std::sqrt(difference / norm), 5e-3);
    for (size_t i = 0; i < expected.lse.size(); ++i) EXPECT_NEAR(decoding.lse[i], expected.lse[i], 2e-5);
  }
}

TEST_F(EmulatedFunctions, RefusalsNameTheRule) {
  const DecodeFunctions& functions = emulated_decode_functions();
  std::array<char, 256> error{};
  CinchDecodeStep step{};
  CinchDecodeSizes sizes{};
  step.kind = 7;
  EXPECT_EQ(functions.sizes(&step, &sizes, error.data(), error.size()), -1);
  EXPECT_EQ(std::string(error.data()), "kind must be grouped or latent, found 7");
  EXPECT_EQ(functions.run(&step, nullptr, error.data(), error.size()), -1);
  CinchCacheAppend append{};
  append.type = 5;
  EXPECT_EQ(functions.append(&append, nullptr, error.data(), error.size()), -1);
  EXPECT_EQ(std::string(error.data()), "type must be bf16 or fp16, found 5");
}

}  // namespace
}  // namespace cinch::decode
