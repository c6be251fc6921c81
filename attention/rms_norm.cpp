#include "attention/rms_norm.h"

#include <ATen/ATen.h>

#include "attention/recorded.h"

namespace cinch {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, double offset) {
  const at::ScalarType dtype = x.scalar_type();
  // One kernel each way; rounds once, after the weight.
  if (x.is_cuda() && offset == 0.0 && weight.scalar_type() == dtype) return at::rms_norm(x, {x.size(-1)}, weight, eps);
  const at::ScalarType work = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor wide = x.to(work);
  if (is_recorded({x, weight})) {  // the same steps, without changing what the backward pass reads
    const at::Tensor scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
    if (offset != 0.0) return (wide * scale * (weight.to(work) + offset)).to(dtype);
    return (wide * scale).to(dtype) * weight;
  }
  const at::Tensor norm = at::linalg_vector_norm(wide, 2, at::IntArrayRef{-1}, /*keepdim=*/true);
  const at::Tensor scale = norm.square_().div_(static_cast<double>(x.size(-1))).add_(eps).rsqrt_();
  at::Tensor result = wide * scale;
  if (offset != 0.0) return result.mul_(weight.to(work) + offset).to(dtype);
  return result.to(dtype).mul_(weight);
}

}  // namespace cinch
