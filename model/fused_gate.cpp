#include "model/fused_gate.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "attention/plugin_kernel.h"
#include "attention/recorded.h"
#include "model/cuda/gated_abi.h"

namespace cinch {
namespace {

const PluginKernel<CinchGated>& kernel() {
  static const PluginKernel<CinchGated> found("cinch_cuda_gated");
  return found;
}

at::Tensor forward_pass(const at::Tensor& gate, const at::Tensor& up) {
  const at::Tensor a = gate.contiguous(), b = up.contiguous(), product = at::empty_like(a);
  kernel().run({.element = element_of(a.scalar_type()),
                .count = a.numel(),
                .gate = a.const_data_ptr(),
                .up = b.const_data_ptr(),
                .gradient = nullptr,
                .first = product.mutable_data_ptr(),
                .second = nullptr},
               a.device());
  return product;
}

struct FusedGate : torch::autograd::Function<FusedGate> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate, const at::Tensor& up) {
    context->save_for_backward({gate, up});
    return forward_pass(gate, up);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor gate = saved[0].contiguous(), up = saved[1].contiguous(), given = gradients[0].contiguous();
    const at::Tensor first = at::empty_like(gate), second = at::empty_like(up);
    kernel().run({.element = element_of(gate.scalar_type()),
                  .count = gate.numel(),
                  .gate = gate.const_data_ptr(),
                  .up = up.const_data_ptr(),
                  .gradient = given.const_data_ptr(),
                  .first = first.mutable_data_ptr(),
                  .second = second.mutable_data_ptr()},
                 gate.device());
    return {first, second};
  }
};

}  // namespace

bool has_fused_gate(const at::Tensor& gate) { return kernel().takes(gate); }

at::Tensor fused_gate(const at::Tensor& gate, const at::Tensor& up) {
  return is_recorded({gate, up}) ? FusedGate::apply(gate, up) : forward_pass(gate, up);
}

}  // namespace cinch
