// How both rotary embeddings are recorded: a rotation's gradient is the rotation back, so nothing but the table is
// kept.
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/rope.h"

namespace cinch {

/// x turned by the angles of the table, as a new tensor; not recorded, and linear in x.
using Rotation = at::Tensor (*)(const at::Tensor& x, const RotaryTable& table);

/// Of tables for numbers of `type`: fp32 for half types that go into a cache, as the decode kernels' append computes
/// them, else the type itself: training keeps its memory, and its teacher rounds like its student.
at::ScalarType rotary_type(at::ScalarType type, bool into_cache);

/// The same, recorded where x asks for gradients. Half types with a table in fp32 are turned in fp32 and rounded once.
at::Tensor rotated(const at::Tensor& x, const RotaryTable& table, Rotation rotation);

}  // namespace cinch
