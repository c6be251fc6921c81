// The trial that a kernel has to pass before it is used, by kernels that are right and by ones that are not.
#include "attention/decode/kernel_trial.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <vector>

#include "attention/decode/step_shape.h"
#include "attention/kernels/decode/emulated_decode.h"
#include "tests/attention/emulation.h"

namespace cinch {
namespace {

AttentionSpec grouped_spec() {
  AttentionSpec spec;
  spec.n_heads = 6;
  spec.n_kv_heads = 2;
  spec.head_dim = 40;
  spec.scale = 0.2;
  return spec;
}

AttentionSpec latent_spec(int64_t value_width, bool key_scales = false) {
  AttentionSpec spec = grouped_spec();
  spec.kind = AttentionKind::latent;
  spec.kv_lora_rank = 40;
  spec.qk_nope_head_dim = 8;
  spec.qk_rope_head_dim = 16;
  spec.v_head_dim = value_width;
  spec.key_scale_tail = key_scales;
  return spec;
}

class KernelTrial : public warp::EmulationTest {
 protected:
  static std::string fault(const AttentionSpec& spec, const DecodeFunctions& functions,
                           CacheFormat format = CacheFormat::sixteen_bit, at::ScalarType dtype = at::kBFloat16) {
    CinchDecodeStep shape = decode_step_shape(spec, {.dtype = dtype, .format = format});
    shape.kernel = CINCH_DECODE_MMA;
    return kernel_fault(shape, at::kCPU, functions);
  }
};

TEST_F(KernelTrial, PassesWhatIsRight) {
  const DecodeFunctions& functions = emulated_decode_functions();
  AttentionSpec windowed = grouped_spec();
  windowed.window = 9;
  windowed.softcap = 3;
  EXPECT_EQ(fault(grouped_spec(), functions), "");
  EXPECT_EQ(fault(windowed, functions, CacheFormat::sixteen_bit, at::kHalf), "");
  for (const CacheFormat format : {CacheFormat::sixteen_bit, CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4}) {
    SCOPED_TRACE(name_of(format));
    EXPECT_EQ(fault(latent_spec(24), functions, format), "");
    EXPECT_EQ(fault(latent_spec(10), functions, format, at::kHalf), "");  // without the value map
    EXPECT_EQ(fault(latent_spec(16, true), functions, format), "");
  }
}

// What follows is wrong in one place each.

int32_t fail(const CinchDecodeStep*, void*, char* error, uint64_t size) {
  snprintf(error, size, "no kernel image");
  return -1;
}
int32_t forget(const CinchDecodeStep*, void*, char*, uint64_t) { return 0; }
int32_t lose_the_last_head(const CinchDecodeStep* step, void* stream, char* error, uint64_t size) {
  const int32_t status = emulated_decode_functions().run(step, stream, error, size);
  auto* out = static_cast<uint16_t*>(step->out);
  std::fill_n(out + (step->n_heads - 1) * step->out_head_stride, step->out_head_stride, uint16_t{0});
  return status;
}
int32_t see_a_token_less(const CinchDecodeStep* step, void* stream, char* error, uint64_t size) {
  const std::array<int32_t, 2> lengths = {step->lengths[0] - 1, step->lengths[1] - 1};
  CinchDecodeStep other = *step;
  other.lengths = lengths.data();
  return emulated_decode_functions().run(&other, stream, error, size);
}
int32_t turn_the_other_pairs(const CinchCacheAppend* append, void* stream, char* error, uint64_t size) {
  CinchCacheAppend other = *append;
  other.pairs = 1 - other.pairs;
  return emulated_decode_functions().append(&other, stream, error, size);
}
int32_t turn_to_the_position_before(const CinchCacheAppend* append, void* stream, char* error, uint64_t size) {
  const std::vector<float> first(static_cast<size_t>(append->rotary_dim / 2));
  CinchCacheAppend other = *append;
  std::vector<float> cos(append->cos, append->cos + 70 * append->rotary_dim / 2);
  cos.insert(cos.begin(), first.begin(), first.end());
  other.cos = cos.data();
  return emulated_decode_functions().append(&other, stream, error, size);
}

TEST_F(KernelTrial, FindsWhatIsWrong) {
  const DecodeFunctions& right = emulated_decode_functions();
  static const DecodeFunctions failing{right.sizes, right.plan, &fail, right.append};
  EXPECT_EQ(fault(latent_spec(24), failing), "a trial on cpu failed: no kernel image");
  static const std::array wrong = {DecodeFunctions{right.sizes, right.plan, &forget, right.append},
                                   DecodeFunctions{right.sizes, right.plan, &lose_the_last_head, right.append},
                                   DecodeFunctions{right.sizes, right.plan, &see_a_token_less, right.append},
                                   DecodeFunctions{right.sizes, right.plan, right.run, &turn_the_other_pairs},
                                   DecodeFunctions{right.sizes, right.plan, right.run, &turn_to_the_position_before}};
  for (size_t i = 0; i < wrong.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_THAT(fault(grouped_spec(), wrong[i]), testing::HasSubstr("a trial on cpu gave a relative error of"));
    EXPECT_THAT(fault(latent_spec(24), wrong[i]), testing::HasSubstr("a trial on cpu gave a relative error of"));
  }
}

TEST_F(KernelTrial, AWrongKernelIsNotFoundForALayer) {
  const DecodeFunctions& right = emulated_decode_functions();
  static const DecodeFunctions wrong{right.sizes, right.plan, &lose_the_last_head, right.append};
  StepRequest request{.tried_on = c10::Device(at::kCPU)};
  EXPECT_EQ(find_decode_kernel(grouped_spec(), request, &right).choice.kernel, DecodeKernel::mma);
  const DecodeChoice choice = find_decode_kernel(grouped_spec(), request, &wrong).choice;
  EXPECT_EQ(choice.kernel, DecodeKernel::attend);
  EXPECT_THAT(choice.why, testing::HasSubstr("a trial on cpu gave a relative error of"));
  request.kernel = DecodeKernel::mma;
  EXPECT_THROW(find_decode_kernel(grouped_spec(), request, &wrong), std::exception);
  request.tried_on.reset();
  EXPECT_EQ(find_decode_kernel(grouped_spec(), request, &wrong).choice.kernel, DecodeKernel::mma);
}

}  // namespace
}  // namespace cinch
