#include <ATen/ATen.h>

#include <limits>

#include "attention/kernels/kernels.h"

namespace cinch {
namespace {

constexpr int64_t kQueryBlock = 256;  // bounds the scores to 256 x S per head

/// (B, H, T, D) -> (B, K, G, T, D), a view.
at::Tensor grouped(const at::Tensor& q, int64_t n_kv_heads) {
  return q.unflatten(1, {n_kv_heads, q.size(1) / n_kv_heads});
}

class ReferenceKernel : public AttentionKernel {
 public:
  std::string name() const override { return "reference"; }
  std::string missing(const AttentionRequest&) const override { return ""; }
  at::Tensor run(const AttentionRequest& request) const override {
    return run_in_query_blocks(request, kQueryBlock, [](const AttentionRequest& part) {
      const at::Tensor weights = attention_probabilities(part);
      return at::matmul(grouped(weights, part.v.size(1)), part.v.unsqueeze(2)).flatten(1, 2);
    });
  }
};

}  // namespace

at::Tensor attention_probabilities(const AttentionRequest& request) {
  const at::Tensor keys = request.k.unsqueeze(2).transpose(3, 4);  // (B, K, 1, D, S)
  at::Tensor scores = at::matmul(grouped(request.q, request.k.size(1)), keys).flatten(1, 2).mul_(request.scale);
  // tanh's gradient needs its own result, so that only what comes after it must be a new tensor.
  if (request.softcap > 0) scores = scores.div_(request.softcap).tanh_() * request.softcap;
  scores.masked_fill_(visible_keys(request).logical_not_(), -std::numeric_limits<double>::infinity());
  // Softmax in fp32 for half types, as transformers' eager attention does.
  const auto wide = scores.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::softmax(scores, -1, wide).to(request.q.scalar_type());
}

const AttentionKernel& reference_kernel() {
  static const ReferenceKernel kernel;
  return kernel;
}

}  // namespace cinch
