// How both rotary embeddings are recorded: a rotation's gradient is the rotation back, so nothing but the table is
// kept.
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/rope.h"

namespace cinch {

/// x turned by the angles of the table, as a new tensor; not recorded, and linear in x.
using Rotation = at::Tensor (*)(const at::Tensor& x, const RotaryTable& table);

/// The same, recorded where x asks for gradients.
at::Tensor rotated(const at::Tensor& x, const RotaryTable& table, Rotation rotation);

}  // namespace cinch
