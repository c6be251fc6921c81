// Activation recomputation: a part of a model keeps only its input, and runs again when its gradients are asked for.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace cinch {

/// f(x) for `f` that may read leaves of autograd beside x: their gradients are accumulated in the leaves by the
/// backward pass. `f` must compute the same both times. Without grad mode f(x) alone.
at::Tensor recomputed(const std::function<at::Tensor(const at::Tensor&)>& f, const at::Tensor& x);

}  // namespace cinch
