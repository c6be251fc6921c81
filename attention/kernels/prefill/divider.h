// Division by a number that a whole launch shares, as a multiplication: devices have no instruction for integer
// division, and rows are divided by the size of their group wherever they are copied.
#pragma once

#include <stdint.h>

#include "attention/kernels/warp/device.h"

namespace cinch::prefill {

/// Of numbers below 2^31 (Granlund and Montgomery 1994, "Division by invariant integers using multiplication"). Zeroed:
/// of no use.
struct Divider {
  uint32_t factor;
  int divisor, shift;

  CINCH_HOST_DEVICE int quotient(int number) const {
    return static_cast<int>((static_cast<uint64_t>(static_cast<uint32_t>(number)) * factor) >> shift);
  }
};

/// divisor >= 1.
inline Divider divider_of(int divisor) {
  int bits = 0;
  while ((int64_t{1} << bits) < divisor) ++bits;
  const auto power = uint64_t{1} << (31 + bits);
  return {static_cast<uint32_t>(power / static_cast<uint64_t>(divisor) + 1), divisor, 31 + bits};
}

}  // namespace cinch::prefill
