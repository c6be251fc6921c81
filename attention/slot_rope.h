// Rotary embedding of latent attention: Dr/2 slots, each a complex pair (re, im) of neighbouring numbers that turns at
// its own explicit frequency. No base, no order: several slots may share a frequency.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "attention/rope.h"

namespace cinch {

class SlotRope {
 public:
  /// inv_freq (Dr/2), radians per token; may be empty.
  explicit SlotRope(std::vector<double> inv_freq) : inv_freq_(std::move(inv_freq)) {}

  /// cos and sin for positions [first, first + count), each (count, Dr/2).
  RotaryTable table(int64_t first, int64_t count, at::ScalarType dtype, at::Device device) const {
    return rotary_table(inv_freq_, first, count, dtype, device);
  }
  /// x (..., T, Dr) with slot s at elements 2s and 2s + 1, times e^(i angle) of the table's T rows. A new tensor.
  static at::Tensor apply(const at::Tensor& x, const RotaryTable& table);

 private:
  std::vector<double> inv_freq_;
};

}  // namespace cinch
