// One decode step in double precision, by the formula of decode_abi.h and one loop after the other: what every kernel
// is measured against. Reads the step's arrays from host memory; plan and scratch are not used.
#pragma once

#include <vector>

#include "attention/kernels/decode/decode_abi.h"

namespace cinch::decode {

struct ReferenceResult {
  std::vector<double> out;  // (B, H, width), width = D, R, or Dv with value_map
  std::vector<double> lse;  // (B, H)
};
ReferenceResult reference_decode(const CinchDecodeStep& step);

/// A step over a cache below 16 bits as the same step over a 16-bit cache of the numbers that it holds: the rows that
/// the queries see, dense, NaN elsewhere.
struct SixteenBitStep {
  std::vector<uint16_t> rows;
  CinchDecodeStep step;  // its `keys` are `rows`
};
SixteenBitStep in_sixteen_bits(const CinchDecodeStep& step);

/// Columns of a query and of a result.
int query_width(const CinchDecodeStep& step);
int out_width(const CinchDecodeStep& step);
/// Columns of a cached row with content: D, or R + rotary columns + key scales.
int row_width(const CinchDecodeStep& step);

}  // namespace cinch::decode
