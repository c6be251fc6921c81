#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "attention/kernels/kernels.h"

namespace cinch {
namespace {

constexpr int64_t kMaskedQueryBlock = 512;  // bounds the mask to 512 x S

/// Padded with zero columns.
at::Tensor widened(const at::Tensor& x, int64_t width) {
  return x.size(-1) == width ? x : at::constant_pad_nd(x, {0, width - x.size(-1)});
}

/// Latent attention's values are the first columns of its keys.
bool values_lie_in_keys(const AttentionRequest& request) {
  const at::Tensor &k = request.k, &v = request.v;
  const bool recorded = at::GradMode::is_enabled() && (k.requires_grad() || v.requires_grad());
  return !recorded && k.size(1) == v.size(1) && v.size(3) <= k.size(3) && k.strides() == v.strides() &&
         k.const_data_ptr() == v.const_data_ptr();
}

/// ATen's flash form wants keys and values of one width; without it a whole (T, S) matrix per head would be held.
/// Columns of zeros in q and k change no score, those in v only add columns to the result.
AttentionRequest of_one_width(AttentionRequest request) {
  const int64_t width = std::max(request.k.size(3), request.v.size(3));
  request.v = values_lie_in_keys(request) ? request.k : widened(request.v, width);
  request.q = widened(request.q, width);
  request.k = widened(request.k, width);
  return request;
}

at::Tensor sdpa(const AttentionRequest& request, const std::optional<at::Tensor>& mask, bool causal) {
  const bool shared_keys = request.q.size(1) != request.k.size(1);
  return at::scaled_dot_product_attention(request.q, request.k, request.v, mask, 0.0, causal, request.scale,
                                          shared_keys);
}

/// The query heads that share a key head as queries of that one head: ATen would copy the keys for each of them.
at::Tensor sdpa_of_last_token(AttentionRequest request) {
  const int64_t heads = request.q.size(1);
  request.q = request.q.unflatten(1, {request.k.size(1), -1}).squeeze(3);  // (B, K, G, D)
  return sdpa(request, {}, false).reshape({request.q.size(0), heads, 1, request.v.size(3)});
}

class SdpaKernel : public AttentionKernel {
 public:
  std::string name() const override { return "sdpa"; }

  std::string missing(const AttentionRequest& request) const override {
    if (request.softcap > 0) return "soft cap";
    return request.documents.defined() && !keys_are_the_queries(request) ? "documents that go on from a cache" : "";
  }

  at::Tensor run(const AttentionRequest& request) const override {
    const int64_t width = request.v.size(3);
    if (width == request.k.size(3)) return run_of_one_width(request);
    return run_of_one_width(of_one_width(request)).narrow(3, 0, width);
  }

 private:
  static bool keys_are_the_queries(const AttentionRequest& request) {
    return request.first_query == request.first_key && request.q.size(2) == request.k.size(2);
  }

  static at::Tensor run_of_one_width(const AttentionRequest& request) {
    if (request.documents.defined()) return run_by_document(request, &run_of_one_width);
    const int64_t queries = request.q.size(2), keys = request.k.size(2);
    if (window_is_idle(request)) {
      if (keys_are_the_queries(request)) return sdpa(request, {}, queries > 1);
      if (queries == 1 && request.first_query == request.first_key + keys - 1) return sdpa_of_last_token(request);
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
