// Losses and gradient of a chunk of logits by one kernel of the CUDA plug-in, where it is there.
#pragma once

#include <ATen/core/Tensor.h>

#include "train/linear_cross_entropy_kd.h"

namespace cinch {

/// On CUDA, for all types but fp64, with the plug-in loaded.
bool has_loss_rows(const at::Tensor& logits);

struct RowLosses {
  at::Tensor cross_entropy, distillation;  // (n) fp32, 0 where a row does not count
};

/// student (n, V), teacher (n, V) or undefined, of one type; targets (n) int64. With `writes_gradient` the gradient of
/// the weighted sum of all rows' losses takes the student's place.
RowLosses loss_rows(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& targets,
                    const LossOptions& options, bool writes_gradient);

}  // namespace cinch
