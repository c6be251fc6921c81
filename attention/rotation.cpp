#include "attention/rotation.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "attention/recorded.h"

namespace cinch {
namespace {

struct RecordedRotation : torch::autograd::Function<RecordedRotation> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin, Rotation rotation) {
    context->save_for_backward({cos, sin});
    context->saved_data["rotation"] = reinterpret_cast<int64_t>(rotation);
    return rotation(x, {cos, sin});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto rotation = reinterpret_cast<Rotation>(context->saved_data["rotation"].toInt());
    return {rotation(gradients[0], {saved[0], saved[1].neg()}), {}, {}, {}};
  }
};

}  // namespace

at::ScalarType rotary_type(at::ScalarType type, bool into_cache) {
  return into_cache && at::elementSize(type) == 2 ? at::kFloat : type;
}

at::Tensor rotated(const at::Tensor& x, const RotaryTable& table, Rotation rotation) {
  const at::ScalarType type = x.scalar_type(), wide = table.cos.scalar_type();
  if (is_recorded({x})) return RecordedRotation::apply(x, table.cos.to(type), table.sin.to(type), rotation);
  return rotation(x.to(wide), table).to(type);
}

}  // namespace cinch
