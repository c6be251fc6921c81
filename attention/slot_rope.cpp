#include "attention/slot_rope.h"

#include <ATen/ATen.h>

#include "attention/rotation.h"

namespace cinch {
namespace {

at::Tensor rotate_pairs(const at::Tensor& x, const RotaryTable& table) {
  at::Tensor result = at::empty_like(x, at::MemoryFormat::Contiguous);
  const auto part = [](const at::Tensor& whole, int64_t i) {  // (..., T, Dr/2)
    return whole.unflatten(-1, {whole.size(-1) / 2, 2}).select(-1, i);
  };
  const at::Tensor re = part(x, 0), im = part(x, 1);
  at::Tensor turned = part(result, 0);
  at::mul_out(turned, re, table.cos);
  turned.addcmul_(im, table.sin, -1);
  turned = part(result, 1);
  at::mul_out(turned, im, table.cos);
  turned.addcmul_(re, table.sin);
  return result;
}

}  // namespace

at::Tensor SlotRope::apply(const at::Tensor& x, const RotaryTable& table) { return rotated(x, table, &rotate_pairs); }

}  // namespace cinch
