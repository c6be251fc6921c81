#include "train/loss_rows.h"

#include <ATen/ATen.h>

#include "attention/plugin_kernel.h"
#include "train/cuda/loss_rows_abi.h"

namespace cinch {
namespace {

const PluginKernel<CinchLossRows>& kernel() {
  static const PluginKernel<CinchLossRows> found("cinch_cuda_loss_rows");
  return found;
}

}  // namespace

bool has_loss_rows(const at::Tensor& logits) { return kernel().takes(logits); }

RowLosses loss_rows(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& targets,
                    const LossOptions& options, bool writes_gradient) {
  const auto sums = student.options().dtype(at::kFloat);
  RowLosses losses = {at::empty({student.size(0)}, sums), at::empty({student.size(0)}, sums)};
  const at::Tensor aims = targets.contiguous();
  TORCH_CHECK(student.is_contiguous() && (!teacher.defined() || teacher.is_contiguous()), "logits in one piece");
  const CinchLossRows rows = {.element = element_of(student.scalar_type()),
                              .rows = student.size(0),
                              .vocabulary = student.size(1),
                              .student = student.mutable_data_ptr(),
                              .teacher = teacher.defined() ? teacher.const_data_ptr() : nullptr,
                              .targets = aims.const_data_ptr<int64_t>(),
                              .cross_entropy = losses.cross_entropy.mutable_data_ptr<float>(),
                              .distillation = losses.distillation.mutable_data_ptr<float>(),
                              .cross_entropy_weight = static_cast<float>(options.weights.cross_entropy),
                              .distillation_weight = static_cast<float>(options.weights.distillation),
                              .softcap = static_cast<float>(options.softcap),
                              .writes_gradient = writes_gradient ? 1 : 0};
  kernel().run(rows, student.device());
  return losses;
}

}  // namespace cinch
