#include "eval/bench/kernel_bench.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <map>

#include "attention/kernels/decode/emulated_decode.h"
#include "core/errors.h"
#include "eval/bench/contenders.h"

namespace cinch {
namespace {

DecodeCase latent(int64_t batch, int64_t context, int64_t rank = 64, int64_t rope_dim = 32) {
  return {.batch = batch, .context = context, .n_heads = 5, .kv_lora_rank = rank, .qk_rope_head_dim = rope_dim};
}
DecodeCase grouped(int64_t batch, int64_t context) {
  return {.kind = AttentionKind::grouped_query,
          .batch = batch,
          .context = context,
          .n_heads = 6,
          .n_kv_heads = 2,
          .head_dim = 48};
}

KernelBenchOptions small_run(at::ScalarType dtype, const DecodeFunctions* functions = nullptr) {
  return {.dtype = dtype, .functions = functions, .memory_bytes = int64_t{1} << 30, .copy_bytes_per_second = 1e9};
}

std::vector<KernelBenchRow> rows_of(const std::vector<DecodeCase>& cases, const KernelBenchOptions& options) {
  std::vector<KernelBenchRow> rows;
  bench_kernels(cases, options,
                [&](const std::vector<KernelBenchRow>& made) { rows.insert(rows.end(), made.begin(), made.end()); });
  return rows;
}

TEST(KernelBench, EveryPeerOfTheCpuIsRight) {
  DecodeCase mapped = latent(2, 70);
  mapped.v_head_dim = 40;
  for (const DecodeCase& decode : {latent(1, 65), latent(3, 128, 96, 16), grouped(2, 100), mapped}) {
    const std::vector<KernelBenchRow> rows = rows_of({decode}, small_run(at::kFloat));
    std::map<std::string, std::string> kernels;
    for (const KernelBenchRow& row : rows) {
      kernels[row.contender] = row.kernel;
      EXPECT_EQ(row.status, "ok") << row.contender << ": " << row.reason;
      EXPECT_LT(row.error, 1e-5) << row.contender;
      EXPECT_GT(row.error, 0) << row.contender;
      EXPECT_GT(row.seconds, 0);
      EXPECT_LE(row.fastest, row.seconds);
      EXPECT_LE(row.seconds, row.slowest);
      EXPECT_GE(row.replays, 5);
      EXPECT_EQ(row.layout, "dense");
      EXPECT_EQ(row.cache_bytes, cache_bytes(decode, 4));
      EXPECT_FALSE(row.ours);
    }
    EXPECT_THAT(kernels, testing::UnorderedElementsAre(
                             testing::Pair("attend", "attend: sdpa"), testing::Pair("sdpa-flash", "sdpa-flash"),
                             testing::Pair("sdpa-math", "sdpa-math"), testing::Pair("two-gemm", "two-gemm")))
        << text_of(decode);
  }
}

class EmulatedKernelBench : public testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "fibres and ThreadSanitizer do not go together";
#endif
  }
};

TEST_F(EmulatedKernelBench, TheStepIsSetUpAsTheKernelsReadIt) {
  DecodeCase ragged = latent(4, 90), ragged_grouped = grouped(3, 80), mapped = latent(2, 70);
  ragged.ragged = ragged_grouped.ragged = true;
  mapped.v_head_dim = 40;
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    KernelBenchOptions options = small_run(type, &emulated_decode_functions());
    options.kernels = {"cinch", "mma"};
    for (const DecodeCase& decode : {latent(2, 130), grouped(2, 70), ragged, ragged_grouped, mapped}) {
      const std::vector<KernelBenchRow> rows = rows_of({decode}, options);
      ASSERT_EQ(rows.size(), 2u);
      for (const KernelBenchRow& row : rows) {
        EXPECT_EQ(row.status, "ok") << text_of(decode) << ": " << row.reason << " " << row.error;
        EXPECT_EQ(row.kernel, "mma");
        EXPECT_EQ(row.layout, "paged");
        EXPECT_TRUE(row.ours);
        EXPECT_GT(row.plan_seconds, 0);
        EXPECT_EQ(row.cache_bytes, cache_bytes(decode, 2));
      }
    }
  }
}

int32_t spoiled_run(const CinchDecodeStep* step, void* stream, char* error, uint64_t error_size) {
  const int32_t status = emulated_decode_functions().run(step, stream, error, error_size);
  // Head 0 of sequence 0, one number in eight.
  auto* const out = static_cast<c10::BFloat16*>(step->out);
  for (int64_t i = 0; i < step->out_head_stride; i += 8) out[i] = -out[i];
  return status;
}
int32_t infinite_run(const CinchDecodeStep* step, void* stream, char* error, uint64_t error_size) {
  const int32_t status = emulated_decode_functions().run(step, stream, error, error_size);
  // A head that is not compared.
  static_cast<c10::BFloat16*>(step->out)[2 * step->out_head_stride] = std::numeric_limits<float>::infinity();
  return status;
}
int32_t refusing_sizes(const CinchDecodeStep*, CinchDecodeSizes*, char* error, uint64_t error_size) {
  snprintf(error, error_size, "no kernel for such a shape");
  return -1;
}

TEST_F(EmulatedKernelBench, WrongResultsAreNotTimed) {
  for (const CinchDecodeRun run : {&spoiled_run, &infinite_run}) {
    DecodeFunctions functions = emulated_decode_functions();
    functions.run = run;
    KernelBenchOptions options = small_run(at::kBFloat16, &functions);
    options.kernels = {"cinch"};
    const std::vector<KernelBenchRow> rows = rows_of({latent(1, 64)}, options);
    ASSERT_EQ(rows.size(), 1u);
    EXPECT_EQ(rows[0].status, "wrong");
    EXPECT_GT(rows[0].error, 0.1);
    EXPECT_EQ(rows[0].seconds, 0);
    const Json json = row_json(rows[0], options);
    EXPECT_EQ(json["status"], "wrong");
    EXPECT_FALSE(json.contains("us"));
    EXPECT_EQ(json["error"].is_null(), run == &infinite_run);
  }
}

TEST(KernelBench, ARefusalIsItsReason) {
  DecodeFunctions functions = emulated_decode_functions();
  functions.sizes = &refusing_sizes;
  KernelBenchOptions options = small_run(at::kBFloat16, &functions);
  options.kernels = {"sm90", "two-gemm"};
  const std::vector<KernelBenchRow> rows = rows_of({latent(1, 64)}, options);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].status, "not covered");
  EXPECT_EQ(rows[0].reason, "no kernel for such a shape");
  EXPECT_NE(rows[1].status, "not covered") << "the others go on";
}

TEST(KernelBench, PeersHaveNoCachesBelowSixteenBitsAndNoRaggedOnes) {
  DecodeCase packed = latent(1, 64), ragged = latent(2, 64);
  packed.format = CacheFormat::int8;
  ragged.ragged = true;
  EXPECT_TRUE(rows_of({packed, ragged}, small_run(at::kBFloat16)).empty());
}

TEST(KernelBench, WhatDoesNotFitSaysSo) {
  KernelBenchOptions options = small_run(at::kFloat);
  options.memory_bytes = cache_bytes(latent(4, 1024), 4);
  const std::vector<KernelBenchRow> rows = rows_of({latent(4, 1024), latent(1, 64)}, options);
  ASSERT_EQ(rows.size(), 8u);
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i].status, i < 4 ? "does not fit" : "ok");
}

TEST(KernelBench, InputsAreRotated) {
  const DecodeCase decode = latent(1, 64);
  KernelBenchOptions options = small_run(at::kFloat);
  options.kernels = {"two-gemm"};
  options.rotation_bytes = 5 * cache_bytes(decode, 4);
  EXPECT_EQ(rows_of({decode}, options).front().rotated_bytes, 6 * cache_bytes(decode, 4));
  options.memory_bytes = 4 * (held_bytes(decode, 4) + io_bytes(decode, 4));  // of which four fifths may be taken
  EXPECT_EQ(rows_of({decode}, options).front().rotated_bytes, 3 * cache_bytes(decode, 4));
}

TEST(KernelBench, JsonHasTheKeysOfTheOtherPrograms) {
  KernelBenchOptions options = small_run(at::kFloat);
  options.kernels = {"attend"};
  options.specified_bytes_per_second = 4e9;
  const std::vector<KernelBenchRow> rows = rows_of({latent(1, 64)}, options);
  ASSERT_EQ(rows.size(), 1u);
  const Json json = row_json(rows[0], options);
  for (const char* key : {"attention",
                          "kernel",
                          "ours",
                          "layout",
                          "dtype",
                          "kv_format",
                          "batch",
                          "context",
                          "n_heads",
                          "n_kv_heads",
                          "head_dim",
                          "kv_lora_rank",
                          "qk_rope_head_dim",
                          "v_head_dim",
                          "ragged",
                          "cache_bytes",
                          "status",
                          "error",
                          "us",
                          "gb_per_s",
                          "share_of_copy",
                          "share_of_specification",
                          "graph",
                          "replays",
                          "rotated_bytes"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["attention"], "mla");
  EXPECT_NEAR(json["gb_per_s"].get<double>(), 64 * 96 * 4 / rows[0].seconds * 1e-9, 1e-9);
  EXPECT_NEAR(json["share_of_copy"].get<double>(), json["gb_per_s"].get<double>(), 1e-9);
  EXPECT_NEAR(json["share_of_specification"].get<double>(), json["gb_per_s"].get<double>() / 4, 1e-9);
}

TEST(Contenders, UnknownNamesAreErrors) {
  try {
    contenders(nullptr, {"attend", "fastest"});
    ADD_FAILURE();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(),
                testing::AllOf(testing::HasSubstr("unknown kernel \"fastest\""), testing::HasSubstr("sdpa-flash")));
  }
}

TEST(Contenders, ScaledDotProductAttentionKeepsItsBackends) {
  const at::Context& context = at::globalContext();
  const bool flash = context.userEnabledFlashSDP(), math = context.userEnabledMathSDP();
  KernelBenchOptions options = small_run(at::kFloat);
  options.kernels = {"sdpa-math"};
  rows_of({latent(1, 64)}, options);
  EXPECT_EQ(context.userEnabledFlashSDP(), flash);
  EXPECT_EQ(context.userEnabledMathSDP(), math);
}

}  // namespace
}  // namespace cinch
