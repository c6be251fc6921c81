#include <ATen/ATen.h>
#include <ATen/SDPBackend.h>
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

/// One call of ATen's attention.
struct Call {
  at::Tensor q, k, v;
  std::optional<at::Tensor> mask;
  bool causal;

  bool shared_keys() const { return q.size(1) != k.size(1); }
};

/// Whether ATen has a form for it that does not hold all scores. On CPU it always has; the fake devices of tests have
/// no say in it.
bool is_fused(const Call& call, double scale) {
  if (!call.q.is_cuda()) return true;
  const int64_t choice =
      at::_fused_sdp_choice(call.q, call.k, call.v, call.mask, 0.0, call.causal, scale, call.shared_keys());
  return choice != static_cast<int64_t>(at::SDPBackend::math);
}

/// Each key head once for every query head: some of ATen's forms do not share them.
Call with_own_keys(Call call) {
  const int64_t group = call.q.size(1) / call.k.size(1);
  call.k = call.k.repeat_interleave(group, 1);
  call.v = call.v.repeat_interleave(group, 1);
  return call;
}

at::Tensor run_call(Call call, double scale) {
  if (call.shared_keys() && !is_fused(call, scale)) call = with_own_keys(std::move(call));
  return at::scaled_dot_product_attention(call.q, call.k, call.v, call.mask, 0.0, call.causal, scale,
                                          call.shared_keys());
}

at::Tensor sdpa(const AttentionRequest& request, const std::optional<at::Tensor>& mask, bool causal) {
  return run_call({request.q, request.k, request.v, mask, causal}, request.scale);
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
    if (request.documents.defined() && !keys_are_the_queries(request)) return "documents that go on from a cache";
    return covers_on_device(request) ? "" : "a fused form in ATen for this shape and device";
  }

  std::string leaves(const AttentionRequest& request) const override {
    const bool half_on_gpu = request.q.is_cuda() && request.q.element_size() == 2;
    return half_on_gpu && needs_mask(request) ? "what it would need masks for to kernels that need none" : "";
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
  static bool is_last_token(const AttentionRequest& request) {
    return request.q.size(2) == 1 && request.first_query == request.first_key + request.k.size(2) - 1;
  }
  static bool needs_mask(const AttentionRequest& request) {
    return !window_is_idle(request) || !(keys_are_the_queries(request) || is_last_token(request));
  }

  /// Whether the call that run() makes has a fused form, or has it with key heads of its own. Asked with few tokens:
  /// forms do not depend on their number.
  static bool covers_on_device(const AttentionRequest& request) {
    if (!request.q.is_cuda()) return true;
    constexpr int64_t kAsked = 16;
    const int64_t width = std::max(request.k.size(3), request.v.size(3));
    const auto like = [&](const at::Tensor& x, int64_t heads) {
      return at::empty({x.size(0), heads, std::min(x.size(2), kAsked), width}, x.options())
          .set_requires_grad(x.requires_grad());
    };
    const bool masked = needs_mask(request), causal = !masked && request.q.size(2) > 1;
    // The last token's query heads are queries of their key head (sdpa_of_last_token).
    const int64_t heads = masked || causal ? request.q.size(1) : request.k.size(1);
    Call call{
        like(request.q, heads), like(request.k, request.k.size(1)), like(request.v, request.k.size(1)), {}, causal};
    if (masked) call.mask = at::empty({call.q.size(2), call.k.size(2)}, request.q.options().dtype(at::kBool));
    if (is_fused(call, request.scale)) return true;
    call.k = like(request.k, heads);
    call.v = like(request.v, heads);
    return is_fused(call, request.scale);
  }

  static at::Tensor run_of_one_width(const AttentionRequest& request) {
    if (request.documents.defined()) return run_by_document(request, &run_of_one_width);
    if (!needs_mask(request)) {
      if (keys_are_the_queries(request)) return sdpa(request, {}, request.q.size(2) > 1);
      return sdpa_of_last_token(request);
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
