#include "attention/slot_rope.h"

#include <ATen/ATen.h>

namespace cinch {

at::Tensor SlotRope::apply(const at::Tensor& x, const RotaryTable& table) {
  const at::Tensor pairs = x.unflatten(-1, {x.size(-1) / 2, 2});  // (..., T, Dr/2, 2)
  const at::Tensor re = pairs.select(-1, 0), im = pairs.select(-1, 1);
  const at::Tensor turned_re = at::addcmul(re * table.cos, im, table.sin, -1);
  const at::Tensor turned_im = at::addcmul(re * table.sin, im, table.cos);
  return at::stack({turned_re, turned_im}, -1).flatten(-2);
}

}  // namespace cinch
