#include "train/recompute.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace cinch {
namespace {

using Part = std::function<at::Tensor(const at::Tensor&)>;

struct Kept : torch::CustomClassHolder {
  explicit Kept(Part part) : run(std::move(part)) {}
  Part run;
};

struct Recomputed : torch::autograd::Function<Recomputed> {
  /// `switched_on` requires a gradient, so that the result does even where x is the model's first activation.
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& switched_on, const Part* part) {
    (void)switched_on;
    context->save_for_backward({x});
    context->saved_data["part"] = c10::IValue::make_capsule(c10::make_intrusive<Kept>(*part));
    return (*part)(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& outputs) {
    const at::Tensor kept = context->get_saved_variables()[0];
    const auto part = c10::static_intrusive_pointer_cast<Kept>(context->saved_data["part"].toCapsule());
    const at::AutoGradMode recording(true);
    at::Tensor x = kept.detach();
    x.set_requires_grad(true);
    torch::autograd::backward({part->run(x)}, {outputs[0]});
    return {x.grad(), {}, {}};
  }
};

}  // namespace

at::Tensor recomputed(const Part& f, const at::Tensor& x) {
  if (!at::GradMode::is_enabled()) return f(x);
  const at::Tensor switched_on = at::empty({0}, x.options()).requires_grad_(true);
  return Recomputed::apply(x, switched_on, &f);
}

}  // namespace cinch
