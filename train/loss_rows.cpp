#include "train/loss_rows.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <fmt/format.h>

#include <array>

#include "core/errors.h"
#include "core/plugin.h"
#include "train/cuda/loss_rows_abi.h"

namespace cinch {
namespace {

/// Null where the plug-in is not there: LibTorch's own CUDA libraries are enough to train without it.
CinchCudaLossRows kernel() {
  static const CinchCudaLossRows found = []() -> CinchCudaLossRows {
    try {
      return reinterpret_cast<CinchCudaLossRows>(find_in_plugin("libcinch_cuda.so", "cinch_cuda_loss_rows"));
    } catch (const Error&) {
      return nullptr;
    }
  }();
  return found;
}

CinchLossType loss_type(at::ScalarType type) {
  return type == at::kBFloat16 ? kCinchLossBF16 : type == at::kHalf ? kCinchLossF16 : kCinchLossF32;
}

}  // namespace

bool has_loss_rows(const at::Tensor& logits) {
  return logits.is_cuda() && logits.scalar_type() != at::kDouble && kernel() != nullptr;
}

RowLosses loss_rows(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& targets,
                    const LossOptions& options, bool writes_gradient) {
  const auto sums = student.options().dtype(at::kFloat);
  RowLosses losses = {at::empty({student.size(0)}, sums), at::empty({student.size(0)}, sums)};
  const at::Tensor aims = targets.contiguous();
  TORCH_CHECK(student.is_contiguous() && (!teacher.defined() || teacher.is_contiguous()), "logits in one piece");
  const CinchLossRows rows = {.type = loss_type(student.scalar_type()),
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
  std::array<char, 256> reason{};
  if (kernel()(&rows, at::accelerator::getCurrentStream(student.device().index()).native_handle(), reason.data(),
               reason.size()) != 0) {
    throw ResourceError(fmt::format("the loss cannot run on {}: {}", student.device().str(), reason.data()));
  }
  return losses;
}

}  // namespace cinch
