#include <ATen/ATen.h>

#include "attention/kernels/kernels.h"

namespace cinch {
namespace {

constexpr int64_t kMaskedQueryBlock = 512;  // bounds the mask to 512 x S

at::Tensor sdpa(const AttentionRequest& request, const std::optional<at::Tensor>& mask, bool causal) {
  const bool shared_keys = request.q.size(1) != request.k.size(1);
  return at::scaled_dot_product_attention(request.q, request.k, request.v, mask, 0.0, causal, request.scale,
                                          shared_keys);
}

class SdpaKernel : public AttentionKernel {
 public:
  std::string name() const override { return "sdpa"; }

  std::string missing(const AttentionRequest& request) const override { return request.softcap > 0 ? "soft cap" : ""; }

  at::Tensor run(const AttentionRequest& request) const override {
    const int64_t queries = request.q.size(2), keys = request.k.size(2);
    if (window_is_idle(request)) {
      if (request.first_query == request.first_key && queries == keys) return sdpa(request, {}, queries > 1);
      if (queries == 1 && request.first_query == request.first_key + keys - 1) return sdpa(request, {}, false);
    }
    return run_in_query_blocks(request, kMaskedQueryBlock,
                               [](const AttentionRequest& part) { return sdpa(part, visible_keys(part), false); });
  }
};

}  // namespace

const AttentionKernel& sdpa_kernel() {
  static const SdpaKernel kernel;
  return kernel;
}

}  // namespace cinch
