#include "attention/kernels/prefill_kernel.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/custom_function.h>

#include "attention/kernels/kernels.h"
#include "attention/plugin_kernel.h"
#include "attention/recorded.h"

namespace cinch {
namespace {

constexpr int64_t kWidest = 256;  // head width
constexpr int64_t kStep = 8;      // of which widths are multiples
constexpr int64_t kMostTokens = 1 << 24;
constexpr int64_t kRowStateBytes = 16;

/// What nothing is differentiated by.
struct Options {
  int64_t first_query, window;
  double scale, softcap;
  const PrefillFunctions* functions;
  at::Tensor first_keys;  // (B, T) int32, or undefined
};

/// As the kernels read it: 16 bytes at once.
at::Tensor readable(const at::Tensor& x) {
  bool aligned = x.stride(3) == 1 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  for (int64_t i = 0; i < 3; ++i) aligned = aligned && (x.size(i) == 1 || x.stride(i) % kStep == 0);
  return aligned ? x : x.clone(at::MemoryFormat::Contiguous);
}
/// (B, heads, tokens, columns), with the heads of a token side by side, as the layers' projections want them.
at::Tensor empty_tokens(const at::Tensor& like, int64_t columns) {
  return at::empty({like.size(0), like.size(2), like.size(1), columns}, like.options()).transpose(1, 2);
}

CinchPrefillArray array_of(const at::Tensor& x) {
  const auto stride = [&x](int64_t axis) { return x.size(axis) == 1 ? 0 : x.stride(axis); };
  return {x.data_ptr(), stride(0), stride(1), stride(2)};
}

CinchPrefill work_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                     const at::Tensor& lse, const Options& options) {
  const auto size = [](const at::Tensor& x, int64_t axis) { return static_cast<int32_t>(x.size(axis)); };
  CinchPrefill work{};
  work.type = q.scalar_type() == at::kBFloat16 ? CINCH_PREFILL_BF16 : CINCH_PREFILL_FP16;
  work.batch = size(q, 0);
  work.n_heads = size(q, 1);
  work.n_kv_heads = size(k, 1);
  work.queries = size(q, 2);
  work.keys = size(k, 2);
  work.head_dim = size(q, 3);
  work.v_head_dim = size(v, 3);
  work.first_query = static_cast<int32_t>(options.first_query);
  work.window = static_cast<int32_t>(options.window);
  work.scale = static_cast<float>(options.scale);
  work.softcap = static_cast<float>(options.softcap);
  work.q = array_of(q);
  work.k = array_of(k);
  work.v = array_of(v);
  work.out = array_of(out);
  work.lse = lse.data_ptr<float>();
  if (options.first_keys.defined()) {
    work.first_keys = options.first_keys.const_data_ptr<int32_t>();
    work.first_keys_stride = options.first_keys.size(1);
  }
  return work;
}

void call(CinchPrefillRun function, const CinchPrefill& work, const at::Tensor& q) {
  const c10::DeviceGuard guard(q.device());
  char reason[256] = {};
  void* const stream = q.is_cuda() ? stream_of(q.device()) : nullptr;
  if (function(&work, stream, reason, sizeof reason) != 0) throw_kernel_error("prefill attention", q.device(), reason);
}

struct ForwardResult {
  at::Tensor out, lse;  // (B, H, T, Dv); (B, H, T) float
};
ForwardResult forward_pass(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Options& options) {
  const ForwardResult result{empty_tokens(q, v.size(3)),
                             at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat))};
  call(options.functions->forward, work_of(q, k, v, result.out, result.lse, options), q);
  return result;
}

struct RecordedPrefill : torch::autograd::Function<RecordedPrefill> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const Options& options) {
    const ForwardResult result = forward_pass(q, k, v, options);
    context->save_for_backward({q, k, v, result.out, result.lse, options.first_keys});
    context->saved_data["first_query"] = options.first_query;
    context->saved_data["window"] = options.window;
    context->saved_data["scale"] = options.scale;
    context->saved_data["softcap"] = options.softcap;
    context->saved_data["functions"] = reinterpret_cast<int64_t>(options.functions);
    return result.out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    auto& data = context->saved_data;
    const Options options{data["first_query"].toInt(),
                          data["window"].toInt(),
                          data["scale"].toDouble(),
                          data["softcap"].toDouble(),
                          reinterpret_cast<const PrefillFunctions*>(data["functions"].toInt()),
                          saved[5]};
    const at::Tensor d_out = readable(gradients[0]);
    const at::Tensor d_q = empty_tokens(q, q.size(3)), d_k = empty_tokens(k, k.size(3)),
                     d_v = empty_tokens(v, v.size(3));
    const at::Tensor states = at::empty({saved[4].numel() * kRowStateBytes}, q.options().dtype(at::kByte));
    CinchPrefill work = work_of(q, k, v, saved[3], saved[4], options);
    work.d_out = array_of(d_out);
    work.d_q = array_of(d_q);
    work.d_k = array_of(d_k);
    work.d_v = array_of(d_v);
    work.row_states = states.data_ptr();
    call(options.functions->backward, work, q);
    return {d_q, d_k, d_v, {}};
  }
};

/// (B, T) int32: numbers of keys instead of positions.
at::Tensor first_keys_of(const AttentionRequest& request) {
  if (!request.documents.defined()) return {};
  return (request.documents.to(request.q.device()) - request.first_key).clamp_min(0).to(at::kInt).contiguous();
}

}  // namespace

const PrefillFunctions* plugin_prefill_functions() {
  static const PrefillFunctions functions = {
      reinterpret_cast<CinchPrefillRun>(find_plugin_kernel("cinch_prefill_forward")),
      reinterpret_cast<CinchPrefillRun>(find_plugin_kernel("cinch_prefill_backward"))};
  return functions.forward != nullptr && functions.backward != nullptr ? &functions : nullptr;
}

std::string PrefillKernel::missing(const AttentionRequest& request) const {
  const at::Tensor &q = request.q, &k = request.k, &v = request.v;
  if (emulated_ == nullptr && !q.is_cuda()) return "CPU";
  if (emulated_ != nullptr && !q.is_cpu()) return "devices other than the CPU";
  const at::ScalarType type = q.scalar_type();
  if (type != at::kHalf && type != at::kBFloat16) return "types other than fp16 and bf16";
  if (k.scalar_type() != type || v.scalar_type() != type) return "keys and values of another type than the queries";
  const int64_t wide = std::max(k.size(3), v.size(3));
  if (wide > kWidest) return "heads of more than 256";
  if (k.size(3) % kStep != 0 || v.size(3) % kStep != 0) return "head sizes that are not multiples of 8";
  if (q.numel() == 0 || k.numel() == 0) return "no tokens";
  const auto in_reach = [](int64_t tokens) { return std::abs(tokens) <= kMostTokens; };
  if (!in_reach(q.size(2)) || !in_reach(k.size(2)) || !in_reach(request.first_query - request.first_key))
    return "more than 2^24 tokens";
  if (request.scale <= 0) return "scales that are not positive";
  return functions() != nullptr ? "" : "the CUDA plug-in";
}

at::Tensor PrefillKernel::run(const AttentionRequest& request) const {
  const Options options{request.first_query - request.first_key,
                        window_is_idle(request) ? 0 : request.window,
                        request.scale,
                        request.softcap,
                        functions(),
                        first_keys_of(request)};
  const at::Tensor q = readable(request.q), k = readable(request.k), v = readable(request.v);
  if (!is_recorded({q, k, v})) return forward_pass(q, k, v, options).out;
  return RecordedPrefill::apply(q, k, v, options);
}

const AttentionKernel& prefill_kernel() {
  static const PrefillKernel kernel;
  return kernel;
}

}  // namespace cinch
