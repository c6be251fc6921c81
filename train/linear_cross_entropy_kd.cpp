#include "train/linear_cross_entropy_kd.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "core/errors.h"
#include "train/loss_rows.h"
#include "train/planning/loss_bytes.h"

namespace cinch {
namespace {

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
    const bool fused = has_loss_rows(in_.hidden);
    const int64_t rows =
        loss_chunk_rows(in_.head.size(0), loss_logit_bytes(fused, static_cast<int64_t>(in_.hidden.element_size())),
                        options_.chunk_bytes);
    for (int64_t first = 0; first < in_.hidden.size(0); first += rows) {
      const int64_t count = std::min(rows, in_.hidden.size(0) - first);
      const at::Tensor gradient = fused ? add_fused(first, count) : add_plain(first, count);
      if (gradient.defined()) add_gradient(first, count, gradient);
    }
    return sums_;
  }

 private:
  bool wants_gradient() const { return sums_.hidden_gradient.defined() || sums_.head_gradient.defined(); }
  at::Tensor targets(int64_t first, int64_t count) const { return in_.targets.narrow(0, first, count); }
  at::Tensor student_logits(int64_t first, int64_t count) const {
    return at::linear(in_.hidden.narrow(0, first, count), in_.head);
  }
  at::Tensor teacher_logits(int64_t first, int64_t count) const {
    return at::linear(in_.teacher_hidden.narrow(0, first, count), in_.teacher_head);
  }

  /// The gradient of the student's logits (n, V), undefined where nobody asks for one.
  at::Tensor add_fused(int64_t first, int64_t count) {
    const bool kd = options_.weights.distillation != 0;
    const at::Tensor student = student_logits(first, count);
    const RowLosses losses = loss_rows(student, kd ? teacher_logits(first, count) : at::Tensor(), targets(first, count),
                                       options_, wants_gradient());
    if (options_.weights.cross_entropy != 0) sums_.cross_entropy += losses.cross_entropy.sum(at::kDouble);
    if (kd) sums_.distillation += losses.distillation.sum(at::kDouble);
    return wants_gradient() ? student : at::Tensor();
  }

  /// The same by ATen's operations.
  at::Tensor add_plain(int64_t first, int64_t count) {
    const at::Tensor target = targets(first, count);
    const at::Tensor counts = target.ne(kIgnoredTarget).unsqueeze(1);  // (n, 1)
    const at::Tensor index = target.clamp_min(0).unsqueeze(1);
    const double ce = options_.weights.cross_entropy, kd = options_.weights.distillation;

    const at::Tensor logits = capped(student_logits(first, count).to(work_), options_.softcap);  // (n, V)
    at::Tensor student = logits.log_softmax(1);
    at::Tensor p;  // the teacher's
    if (ce != 0) sums_.cross_entropy -= at::where(counts, student.gather(1, index), 0).sum(at::kDouble);
    if (kd != 0) {
      at::Tensor teacher = capped(teacher_logits(first, count).to(work_), options_.softcap).log_softmax(1);  // (n, V)
      p = teacher.exp();
      sums_.distillation += at::where(counts, teacher.sub_(student).mul_(p).sum(1, true), 0).sum(at::kDouble);
    }
    if (!wants_gradient()) return {};

    at::Tensor gradient = student.exp_();
    if (ce + kd != 1) gradient.mul_(ce + kd);
    if (kd != 0) gradient.sub_(p, kd);
    if (ce != 0) gradient.scatter_add_(1, index, at::full({count, 1}, -ce, gradient.options()));
    if (options_.softcap > 0) gradient.mul_(1 - (logits / options_.softcap).square_());
    return gradient.to(in_.hidden.scalar_type());
  }

  /// Through the head, in both directions. Tokens that do not count are taken out of the narrow factors: a pass over
  /// (n, V) costs more.
  void add_gradient(int64_t first, int64_t count, const at::Tensor& gradient) {
    const at::Tensor counts = targets(first, count).ne(kIgnoredTarget).unsqueeze(1);
    if (sums_.hidden_gradient.defined()) {
      at::Tensor out = sums_.hidden_gradient.narrow(0, first, count);
      at::mm_out(out, gradient, in_.head).mul_(counts);
    }
    if (!sums_.head_gradient.defined()) return;
    const at::Tensor seen = in_.hidden.narrow(0, first, count) * counts;
    if (in_.hidden.scalar_type() == work_) {
      sums_.head_gradient.addmm_(gradient.t(), seen);
    } else if (in_.hidden.is_cuda()) {  // whose library sums products of narrow types into a wide matrix
      at::addmm_out(sums_.head_gradient, sums_.head_gradient, gradient.t(), seen, work_);
    } else {
      sums_.head_gradient += gradient.t().mm(seen);
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

int64_t loss_chunk_rows(int64_t vocabulary, int64_t logit_bytes, int64_t chunk_bytes) {
  return std::max<int64_t>(1, chunk_bytes / (vocabulary * logit_bytes));
}

LossValue linear_cross_entropy_kd(const LossInputs& inputs, const LossOptions& options) {
  check(inputs, options);
  const auto values = LinearCrossEntropyKd::apply(inputs.hidden, inputs.head, &inputs, &options);
  return {values[0], values[1], values[2]};
}

}  // namespace cinch
