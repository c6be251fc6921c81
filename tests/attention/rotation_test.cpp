#include "attention/rotation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "attention/rope.h"
#include "attention/slot_rope.h"

namespace cinch {
namespace {

/// Result and gradient of a recorded rotation.
struct Passes {
  at::Tensor result, gradient;
};
template <typename Apply>
Passes passes(const at::Tensor& values, const at::Tensor& given, const Apply& apply) {
  const at::Tensor x = values.detach().clone().requires_grad_(true);
  const at::Tensor result = apply(x);
  result.backward(given);
  return {result.detach(), x.grad()};
}

void expect_same(const Passes& found, const Passes& expected) {
  EXPECT_LT((found.result - expected.result).abs().max().item<double>(), 1e-14);
  EXPECT_LT((found.gradient - expected.gradient).abs().max().item<double>(), 1e-14);
}

// Recorded as one operation, against the same by operations that autograd knows. Tables need not be of unit length
// (YaRN), and heads may rotate in part.
TEST(Rotation, GradientsAreThoseOfPlainOperations) {
  at::manual_seed(4);
  const RotaryTable turns = rotary_table({1.0, 0.3, 0.01}, 5, 7, at::kDouble, at::kCPU);
  const RotaryTable table = {turns.cos * 1.3, turns.sin * 1.3};
  const at::Tensor wide = at::randn({2, 7, 3, 8}, at::kDouble).transpose(1, 2);  // as heads lie, two numbers unrotated
  const at::Tensor given = at::randn(wide.sizes(), at::kDouble);
  expect_same(passes(wide, given, [&](const at::Tensor& x) { return Rope::apply(x, table); }),
              passes(wide, given, [&](const at::Tensor& x) {
                const at::Tensor a = x.narrow(-1, 0, 3), b = x.narrow(-1, 3, 3);
                return at::cat({a * table.cos - b * table.sin, b * table.cos + a * table.sin, x.narrow(-1, 6, 2)}, -1);
              }));
  const at::Tensor slots = wide.narrow(-1, 1, 6), of_slots = given.narrow(-1, 0, 6);
  expect_same(passes(slots, of_slots, [&](const at::Tensor& x) { return SlotRope::apply(x, table); }),
              passes(slots, of_slots, [&](const at::Tensor& x) {
                const at::Tensor turned =
                    at::view_as_complex(x.unflatten(-1, {3, 2}).contiguous()) * at::complex(table.cos, table.sin);
                return at::view_as_real(turned).flatten(-2);
              }));
}

}  // namespace
}  // namespace cinch
