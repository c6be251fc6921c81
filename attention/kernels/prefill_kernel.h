// Our own attention of many queries, forward and backward (attention/kernels/prefill), as one of the dispatcher's
// kernels. Never holds scores: memory grows with the tokens, not with their square.
#pragma once

#include <string>

#include "attention/attention_kernel.h"
#include "attention/kernels/prefill/prefill_functions.h"

namespace cinch {

class PrefillKernel : public AttentionKernel {
 public:
  /// Of tensors on the CPU with `functions` that run there (the emulator's), else of the CUDA plug-in's.
  explicit PrefillKernel(const PrefillFunctions* functions = nullptr) : emulated_(functions) {}

  std::string name() const override { return "cinch"; }
  std::string missing(const AttentionRequest& request) const override;
  bool is_checked_first() const override { return true; }
  /// Recorded by autograd where that is on; the backward gives the same bits every time. It cannot be differentiated
  /// again. Throws ResourceError when the kernels cannot start.
  at::Tensor run(const AttentionRequest& request) const override;

 private:
  const PrefillFunctions* functions() const { return emulated_ != nullptr ? emulated_ : plugin_prefill_functions(); }

  const PrefillFunctions* emulated_;
};

}  // namespace cinch
