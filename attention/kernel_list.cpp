#include <ATen/ATen.h>
#include <fmt/format.h>

#include "attention/attention_kernel.h"
#include "attention/kernels/kernels.h"
#include "core/errors.h"

namespace cinch {

const std::vector<const AttentionKernel*>& attention_kernels() {
  static const std::vector<const AttentionKernel*> kernels = {&flash_kernel(), &sdpa_kernel(), &reference_kernel()};
  return kernels;
}

at::Tensor attend(const AttentionRequest& request) {
  const at::Tensor &documents = request.documents, &q = request.q;
  if (documents.defined() && (documents.scalar_type() != at::kLong || documents.dim() != 2 ||
                              documents.size(0) != q.size(0) || documents.size(1) != q.size(2))) {
    throw ShapeError(fmt::format("documents of {} sequences of {} tokens: expected int64 ({}, {}), found {} ({})",
                                 q.size(0), q.size(2), q.size(0), q.size(2), at::toString(documents.scalar_type()),
                                 fmt::join(documents.sizes(), ", ")));
  }
  for (const AttentionKernel* kernel : attention_kernels()) {
    if (kernel->missing(request).empty()) return kernel->run(request);
  }
  TORCH_INTERNAL_ASSERT(false, "the reference kernel takes everything");
}

std::vector<std::string> explain_dispatch(const AttentionRequest& request) {
  std::vector<std::string> lines;
  bool chosen = false;
  for (const AttentionKernel* kernel : attention_kernels()) {
    const std::string missing = kernel->missing(request);
    const char* verdict = !missing.empty() ? "cannot: " : chosen ? "could run" : "runs";
    lines.push_back(fmt::format("{:<10} {}{}", kernel->name(), verdict, missing));
    chosen = chosen || missing.empty();
  }
  return lines;
}

}  // namespace cinch
