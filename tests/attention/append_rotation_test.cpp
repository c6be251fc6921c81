// How the cache append rotates, against the rotary embeddings of the model's own code and against double precision.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "attention/kernels/decode/emulated_decode.h"
#include "attention/rope.h"
#include "attention/slot_rope.h"
#include "tests/attention/append_grid.h"
#include "tests/attention/emulation.h"

namespace cinch {
namespace {

using namespace decode;

class AppendRotation : public EmulationTest {};

at::ScalarType type_of(const AppendArrays& arrays) {
  return arrays.append.type == CINCH_DECODE_BF16 ? at::kBFloat16 : at::kHalf;
}

/// Queries and results of an append, (B, H, T, width).
at::Tensor queries(const AppendArrays& arrays, const CinchTokenRows& rows, int64_t width) {
  const CinchCacheAppend& a = arrays.append;
  return at::from_blob(const_cast<void*>(rows.data), {a.batch, a.n_heads, a.tokens, width},
                       {rows.batch_stride, rows.head_stride, rows.token_stride, 1}, at::TensorOptions(type_of(arrays)))
      .contiguous();
}
at::Tensor results(const AppendArrays& arrays, int64_t width) {
  const CinchCacheAppend& a = arrays.append;
  return queries(arrays, {a.q_out, a.q_out_batch_stride, a.q_out_head_stride, a.q_out_token_stride}, width);
}

/// One sequence of 40 tokens after 30 others; `table` goes in.
AppendArrays appended(AppendCase c, const RotaryTable& table) {
  c.lengths = {70};
  c.tokens = 40;
  AppendArrays arrays = AppendBuilder(c, 5).build();
  const auto numbers = [](const at::Tensor& x) {
    return std::vector<float>(x.const_data_ptr<float>(), x.const_data_ptr<float>() + x.numel());
  };
  arrays.cos = numbers(table.cos);
  arrays.sin = numbers(table.sin);
  arrays.point();
  run_emulated(arrays.append, false);
  return arrays;
}
RotaryTable rows_of_new(const RotaryTable& table) { return {table.cos.narrow(0, 30, 40), table.sin.narrow(0, 30, 40)}; }

/// The same bits as the model's rotation in fp32, rounded once.
TEST_F(AppendRotation, EqualsTheModelsInSinglePrecisionBitForBit) {
  for (const int type : {CINCH_DECODE_BF16, CINCH_DECODE_FP16}) {
    RopeSpec spec;
    spec.type = "yarn";
    spec.rotary_dim = 40;
    spec.factor = 4;
    spec.original_max_position_embeddings = 64;
    spec.max_position_embeddings = 256;
    const Rope rope(spec);
    ASSERT_NE(rope.attention_scaling(), 1);
    const RotaryTable halves = rope.table(0, 70, 70, at::kFloat, at::kCPU);
    AppendCase grouped = grouped_append(64, 40, 9, 3, 1, {});
    grouped.type = type;
    AppendArrays arrays = appended(grouped, halves);
    at::Tensor x = queries(arrays, arrays.append.q, 64);
    EXPECT_TRUE(results(arrays, 64).equal(Rope::apply(x.to(at::kFloat), rows_of_new(halves)).to(x.scalar_type())));

    const SlotRope slots({1, 0.3, 0.3, 0.01, 2e-3, 1e-4});
    const RotaryTable pairs = slots.table(0, 70, at::kFloat, at::kCPU);
    AppendCase latent = latent_append(40, 12, 1, {});
    latent.type = type;
    arrays = appended(latent, pairs);
    x = queries(arrays, arrays.append.q, 12);
    EXPECT_TRUE(results(arrays, 12).equal(SlotRope::apply(x.to(at::kFloat), rows_of_new(pairs)).to(x.scalar_type())));
  }
}

/// Half a unit in the last place of the type, and never further off than cos, sin, product and sum each rounded to the
/// type, as LibTorch's operations on half types do.
TEST_F(AppendRotation, RoundsOnce) {
  for (const int type : {CINCH_DECODE_BF16, CINCH_DECODE_FP16}) {
    const double half_unit = type == CINCH_DECODE_BF16 ? 0x1p-8 : 0x1p-11;
    const RotaryTable table = rotary_table({1, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5}, 0, 70, at::kFloat, at::kCPU);
    AppendCase c = grouped_append(16, 16, 9, 3, 1, {});
    c.type = type;
    const AppendArrays arrays = appended(c, table);
    const RotaryTable rows = rows_of_new(table);
    const at::Tensor x = queries(arrays, arrays.append.q, 16), first = x.narrow(-1, 0, 8), second = x.narrow(-1, 8, 8);
    const auto turn = [&](at::ScalarType step, int sign) {
      const at::Tensor a = (sign < 0 ? first : second).to(step), b = (sign < 0 ? second : first).to(step);
      return (a * rows.cos.to(step)).addcmul_(b, rows.sin.to(step), sign).to(at::kDouble);
    };
    const at::Tensor exact = at::cat({turn(at::kDouble, -1), turn(at::kDouble, 1)}, -1);
    const at::Tensor stepwise = at::cat({turn(x.scalar_type(), -1), turn(x.scalar_type(), 1)}, -1);
    const at::Tensor found = results(arrays, 16).to(at::kDouble), error = (found - exact).abs();
    const at::Tensor size = first.to(at::kDouble).abs() + second.to(at::kDouble).abs();
    const at::Tensor bound = half_unit * exact.abs() + 0x1p-23 * at::cat({size, size}, -1);
    EXPECT_TRUE(error.le(bound).all().item<bool>());
    const double own = error.norm().item<double>(), other = (stepwise - exact).norm().item<double>();
    EXPECT_LT(own, 0.8 * other);
    RecordProperty(type == CINCH_DECODE_BF16 ? "stepwise_over_once_bf16" : "stepwise_over_once_fp16",
                   std::to_string(other / own));
  }
}

}  // namespace
}  // namespace cinch
