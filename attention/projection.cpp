#include "attention/projection.h"

#include <ATen/ATen.h>

#include <optional>

namespace cinch {

at::Tensor biased_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::linear(x, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
}

at::Tensor split_heads(const at::Tensor& x, int64_t heads) { return x.unflatten(-1, {heads, -1}).transpose(1, 2); }

at::Tensor join_heads(const at::Tensor& x) { return x.transpose(1, 2).flatten(2); }

at::Tensor moved(const at::Tensor& tensor, at::ScalarType dtype, at::Device device) {
  return tensor.defined() ? tensor.to(device, dtype) : tensor;
}

}  // namespace cinch
