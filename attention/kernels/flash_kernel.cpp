#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "attention/kernels/kernels.h"

namespace cinch {
namespace {

constexpr int64_t kWidest = 256;  // head width of ATen's flash attention
constexpr int64_t kStep = 8;      // of which its widths are multiples

/// (B, H, T, D) as rows of tokens, padded with zero columns: (B*T, H, width).
at::Tensor as_rows(const at::Tensor& x, int64_t width) {
  const at::Tensor rows = x.transpose(1, 2).flatten(0, 1);
  return rows.size(-1) == width ? rows : at::constant_pad_nd(rows, {0, width - rows.size(-1)});
}

/// ATen's flash attention over all documents of all sequences in one launch, and with windows: what its
/// scaled_dot_product_attention cannot be asked for without a mask of (T, S).
class FlashKernel : public AttentionKernel {
 public:
  std::string name() const override { return "flash"; }

  std::string missing(const AttentionRequest& request) const override {
    if (!request.q.is_cuda()) return "CPU";
    if (at::elementSize(request.q.scalar_type()) != 2) return "types other than fp16 and bf16";
    if (request.softcap > 0) return "soft cap";
    if (request.first_query != request.first_key || request.q.size(2) != request.k.size(2)) return "a cache";
    if (width(request) > kWidest) return "heads of more than 256";
    return "";
  }

  std::string leaves(const AttentionRequest& request) const override {
    return request.documents.defined() || !window_is_idle(request) ? "" : "to sdpa what sdpa does as well";
  }

  at::Tensor run(const AttentionRequest& request) const override {
    const int64_t batch = request.q.size(0), tokens = request.q.size(2), wide = width(request);
    const std::vector<int64_t> lengths = request.documents.defined()
                                             ? document_lengths(request)
                                             : std::vector<int64_t>(static_cast<size_t>(batch), tokens);
    std::vector<int32_t> ends = {0};
    for (const int64_t length : lengths) ends.push_back(ends.back() + static_cast<int32_t>(length));
    const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
    const at::Tensor limits =
        at::tensor(ends, at::TensorOptions(at::kInt)).to(request.q.device(), /*non_blocking=*/true);
    const std::optional<int64_t> older = request.window > 0 ? std::optional<int64_t>(request.window - 1) : std::nullopt;
    const at::Tensor out = std::get<0>(at::_flash_attention_forward(
        as_rows(request.q, wide), as_rows(request.k, wide), as_rows(request.v, wide), limits, limits, longest, longest,
        /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false, request.scale, older,
        older ? std::optional<int64_t>(0) : std::nullopt));  // (B*T, H, width)
    return out.narrow(2, 0, request.v.size(3)).unflatten(0, {batch, tokens}).transpose(1, 2);
  }

 private:
  static int64_t width(const AttentionRequest& request) {
    return (std::max(request.k.size(3), request.v.size(3)) + kStep - 1) / kStep * kStep;
  }
};

}  // namespace

const AttentionKernel& flash_kernel() {
  static const FlashKernel kernel;
  return kernel;
}

}  // namespace cinch
