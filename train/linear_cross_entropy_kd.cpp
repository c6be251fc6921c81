#include "train/linear_cross_entropy_kd.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr int64_t kBuffers = 4;  // of (rows, V) at once: student, teacher, gradient, and one that an operation makes

struct Sums {
  at::Tensor hidden_gradient, head_gradient;  // undefined where not asked for
  at::Tensor cross_entropy, distillation;     // sums over tokens, fp64
};

at::Tensor capped(const at::Tensor& logits, double cap) { return cap > 0 ? (logits / cap).tanh_().mul_(cap) : logits; }

class Chunks {
 public:
  Chunks(const LossInputs& inputs, const LossOptions& options, bool wants_hidden, bool wants_head)
      : in_(inputs), options_(options) {
    const bool fp64 = in_.hidden.scalar_type() == at::kDouble;
    work_ = fp64 ? at::kDouble : at::kFloat;
    const auto sums = in_.hidden.options().dtype(at::kDouble);
    sums_.cross_entropy = at::zeros({}, sums);
    sums_.distillation = at::zeros({}, sums);
    if (wants_hidden) sums_.hidden_gradient = at::empty_like(in_.hidden);
    if (wants_head) sums_.head_gradient = at::zeros(in_.head.sizes(), in_.head.options().dtype(work_));
  }

  Sums run() {
    const int64_t rows = loss_chunk_rows(in_.head.size(0), work_ == at::kDouble, options_);
    for (int64_t first = 0; first < in_.hidden.size(0); first += rows)
      add(first, std::min(rows, in_.hidden.size(0) - first));
    return sums_;
  }

 private:
  void add(int64_t first, int64_t count) {
    const at::Tensor hidden = in_.hidden.narrow(0, first, count);
    const at::Tensor target = in_.targets.narrow(0, first, count);
    const at::Tensor counts = target.ne(kIgnoredTarget).unsqueeze(1);  // (n, 1)
    const at::Tensor index = target.clamp_min(0).unsqueeze(1);
    const double ce = options_.weights.cross_entropy, kd = options_.weights.distillation;

    const at::Tensor logits = capped(at::linear(hidden, in_.head).to(work_), options_.softcap);  // (n, V)
    at::Tensor student = logits.log_softmax(1);
    at::Tensor p;  // the teacher's
    if (ce != 0) sums_.cross_entropy -= at::where(counts, student.gather(1, index), 0).sum(at::kDouble);
    if (kd != 0) {
      const at::Tensor seen = in_.teacher_hidden.narrow(0, first, count);
      at::Tensor teacher =
          capped(at::linear(seen, in_.teacher_head).to(work_), options_.softcap).log_softmax(1);  // (n, V)
      p = teacher.exp();
      sums_.distillation += at::where(counts, teacher.sub_(student).mul_(p).sum(1, true), 0).sum(at::kDouble);
    }
    if (!sums_.hidden_gradient.defined() && !sums_.head_gradient.defined()) return;

    at::Tensor gradient = student.exp_();
    if (ce + kd != 1) gradient.mul_(ce + kd);
    if (kd != 0) gradient.sub_(p, kd);
    if (ce != 0) gradient.scatter_add_(1, index, at::full({count, 1}, -ce, gradient.options()));
    if (options_.softcap > 0) gradient.mul_(1 - (logits / options_.softcap).square_());
    gradient = gradient.to(in_.hidden.scalar_type());
    // Tokens that do not count are taken out of the narrow factors: each pass over (n, V) is what this costs.
    if (sums_.hidden_gradient.defined()) {
      at::Tensor out = sums_.hidden_gradient.narrow(0, first, count);
      at::mm_out(out, gradient, in_.head).mul_(counts);
    }
    if (sums_.head_gradient.defined()) {
      const at::Tensor seen = hidden * counts;
      if (in_.hidden.scalar_type() == work_) {
        sums_.head_gradient.addmm_(gradient.t(), seen);
      } else {
        sums_.head_gradient += gradient.t().mm(seen);
      }
    }
  }

  const LossInputs& in_;
  const LossOptions& options_;
  at::ScalarType work_;
  Sums sums_;
};

struct LinearCrossEntropyKd : torch::autograd::Function<LinearCrossEntropyKd> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& hidden,
                                                const at::Tensor& head, const LossInputs* inputs,
                                                const LossOptions* options) {
    const Sums sums = Chunks(*inputs, *options, hidden.requires_grad(), head.requires_grad()).run();
    const at::Tensor tokens =
        options->denominator > 0 ? at::full({}, static_cast<double>(options->denominator), sums.cross_entropy.options())
                                 : inputs->targets.ne(kIgnoredTarget).sum().to(at::kDouble).clamp_min(1);
    const at::Tensor ce = sums.cross_entropy / tokens, kd = sums.distillation / tokens;
    context->save_for_backward({sums.hidden_gradient, sums.head_gradient, tokens});
    context->saved_data["head_type"] = static_cast<int64_t>(head.scalar_type());
    const at::Tensor total = ce * options->weights.cross_entropy + kd * options->weights.distillation;
    context->mark_non_differentiable({ce, kd});
    return {total.to(hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat), ce, kd};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& outputs) {
    const auto saved = context->get_saved_variables();
    const at::Tensor factor = outputs[0].to(at::kDouble) / saved[2];
    const auto head_type = static_cast<at::ScalarType>(context->saved_data["head_type"].toInt());
    // In place: the head's gradient is the largest tensor of all, and nobody asks for it twice.
    at::Tensor hidden = saved[0], head = saved[1];
    if (hidden.defined()) hidden.mul_(factor.to(hidden.scalar_type()));
    if (head.defined()) head = head.mul_(factor.to(head.scalar_type())).to(head_type);
    return {hidden, head, {}, {}};
  }
};

void check(const LossInputs& in, const LossOptions& options) {
  const auto fail = [](const std::string& what) { throw ShapeError("loss: " + what); };
  if (in.hidden.dim() != 2 || in.head.dim() != 2 || in.hidden.size(1) != in.head.size(1)) {
    fail(fmt::format("hidden states {} do not fit a head {}", fmt::join(in.hidden.sizes(), " x "),
                     fmt::join(in.head.sizes(), " x ")));
  }
  if (in.targets.dim() != 1 || in.targets.size(0) != in.hidden.size(0))
    fail(fmt::format("{} targets for {} tokens", in.targets.numel(), in.hidden.size(0)));
  if (options.weights.distillation == 0) return;
  if (!in.teacher_hidden.defined() || !in.teacher_head.defined()) fail("distillation needs a teacher");
  if (in.teacher_hidden.size(0) != in.hidden.size(0) || in.teacher_head.size(0) != in.head.size(0) ||
      in.teacher_hidden.size(1) != in.teacher_head.size(1)) {
    fail(fmt::format("the teacher has {} tokens and a vocabulary of {}, the student {} and {}",
                     in.teacher_hidden.size(0), in.teacher_head.size(0), in.hidden.size(0), in.head.size(0)));
  }
}

}  // namespace

int64_t loss_chunk_rows(int64_t vocabulary, bool fp64, const LossOptions& options) {
  return std::max<int64_t>(1, options.chunk_bytes / (kBuffers * vocabulary * (fp64 ? 8 : 4)));
}

LossValue linear_cross_entropy_kd(const LossInputs& inputs, const LossOptions& options) {
  check(inputs, options);
  const auto values = LinearCrossEntropyKd::apply(inputs.hidden, inputs.head, &inputs, &options);
  return {values[0], values[1], values[2]};
}

}  // namespace cinch
