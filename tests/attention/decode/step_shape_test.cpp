#include "attention/decode/step_shape.h"

#include <gmock/gmock.h>

#include "attention/kernels/decode/emulated_decode.h"
#include "core/errors.h"

namespace cinch {
namespace {

AttentionSpec grouped(int64_t head_dim) {
  AttentionSpec spec;
  spec.n_heads = 9;
  spec.n_kv_heads = 3;
  spec.head_dim = head_dim;
  spec.scale = 0.1;
  spec.window = 50;
  return spec;
}

AttentionSpec latent(int64_t value_width) {
  AttentionSpec spec = grouped(64);
  spec.kind = AttentionKind::latent;
  spec.window = 0;
  spec.kv_lora_rank = 40;
  spec.qk_nope_head_dim = 16;
  spec.qk_rope_head_dim = 8;
  spec.v_head_dim = value_width;
  return spec;
}

TEST(StepShape, OfGroupedAttention) {
  const CinchDecodeStep step = decode_step_shape(grouped(48), {.sequences = 2, .dtype = at::kHalf});
  EXPECT_EQ(step.kind, CINCH_DECODE_GROUPED);
  EXPECT_EQ(step.type, CINCH_DECODE_FP16);
  EXPECT_EQ(step.keys.token_stride, 48);
  EXPECT_EQ(step.keys.head_stride, 64 * 48);
  EXPECT_EQ(step.values.page_stride, 3 * 64 * 48);
  EXPECT_EQ(step.q_batch_stride, 9 * 48);
  EXPECT_EQ(step.window, 50);
}

TEST(StepShape, OfLatentAttentionInEveryFormat) {
  AttentionSpec spec = latent(24);
  const CinchDecodeStep step = decode_step_shape(spec, {});
  EXPECT_EQ(step.keys.token_stride, 48);
  EXPECT_EQ(step.v_head_dim, 24);
  EXPECT_EQ(step.value_map_head_stride, (16 + 24) * 40);
  EXPECT_EQ(step.out_head_stride, 24);
  EXPECT_EQ(step.open.page_stride, 0);
  const CinchDecodeStep packed = decode_step_shape(spec, {.format = CacheFormat::int4});
  EXPECT_EQ(packed.keys.page_stride, 64 * 32 + 2 * 96);  // codes of 24 bytes in rows of 32; scales and zeros
  EXPECT_EQ(packed.open.page_stride, 64 * 48);
  spec.qk_norm = spec.key_scale_tail = true;
  EXPECT_EQ(decode_step_shape(spec, {}).keys.token_stride, 56);  // 40 + 8 + 3 key scales, padded to 8
  // Values of a width that the kernels' map does not take stay latent.
  const CinchDecodeStep unmapped = decode_step_shape(latent(20), {});
  EXPECT_EQ(unmapped.v_head_dim, 0);
  EXPECT_EQ(unmapped.out_head_stride, 40);
}

TEST(StepShape, OnlyHalfTypes) {
  EXPECT_THROW(decode_step_shape(grouped(64), {.dtype = at::kFloat}), UnsupportedError);
}

TEST(DecodeKernelSearch, FindsTheFirstThatCovers) {
  const KernelSearch found = find_decode_kernel(latent(24), {}, &emulated_decode_functions());
  EXPECT_EQ(found.choice.kernel, DecodeKernel::mma);
  EXPECT_EQ(found.step.kernel, CINCH_DECODE_MMA);
  EXPECT_GT(found.sizes.parts, 0);
  EXPECT_NE(found.choice.why, "");  // of sm90
}

TEST(DecodeKernelSearch, SaysWhyNothingCovers) {
  const auto why = [](const AttentionSpec& spec, const StepRequest& request, const DecodeFunctions* functions) {
    const KernelSearch found = find_decode_kernel(spec, request, functions);
    EXPECT_EQ(found.choice.kernel, DecodeKernel::attend);
    return found.choice.why;
  };
  const DecodeFunctions* functions = &emulated_decode_functions();
  EXPECT_EQ(why(grouped(64), {}, nullptr), "no decode kernels on this device");
  EXPECT_EQ(why(grouped(64), {.dtype = at::kFloat}, functions), "decode kernels take bf16 and fp16, not Float");
  EXPECT_EQ(why(grouped(64), {.kernel = DecodeKernel::attend}, functions), "asked for");
  EXPECT_THAT(why(grouped(36), {}, functions), testing::HasSubstr("head_dim"));
}

TEST(DecodeKernelSearch, AForcedKernelThatDoesNotCoverIsAnError) {
  const DecodeFunctions* functions = &emulated_decode_functions();
  EXPECT_EQ(find_decode_kernel(grouped(64), {.kernel = DecodeKernel::mma}, functions).choice.kernel, DecodeKernel::mma);
  for (const auto& [spec, kernel] : {std::pair{grouped(64), DecodeKernel::sm90}, {grouped(36), DecodeKernel::mma}}) {
    EXPECT_THROW(find_decode_kernel(spec, {.kernel = kernel}, functions), UnsupportedError);
  }
  EXPECT_THROW(find_decode_kernel(grouped(64), {.kernel = DecodeKernel::mma}, nullptr), UnsupportedError);
}

}  // namespace
}  // namespace cinch
