#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <array>
#include <cmath>

#include "attention/attention_kernel.h"
#include "eval/bench/contenders.h"

namespace cinch {
namespace {

double scale_of(const DecodeCase& decode) { return 1 / std::sqrt(static_cast<double>(decode.key_width())); }

/// The query heads that share a key head as queries of that head: (B, K, G, Dk).
at::Tensor as_rows(const DecodeCase& decode, const at::Tensor& q) {
  return q.view({decode.batch, decode.latent() ? 1 : decode.n_kv_heads, -1, decode.key_width()});
}

at::Tensor as_heads(const DecodeCase& decode, const at::Tensor& out) {
  return out.reshape({decode.batch, decode.n_heads, out.size(-1)}).narrow(-1, 0, decode.value_width());
}

/// Dense caches of 16 bits (on a CPU: or more), sequences of one length.
class TorchContender : public Contender {
 public:
  std::string missing(const DecodeCase& decode, at::Device) const override {
    if (decode.format != CacheFormat::sixteen_bit) return "caches below 16 bits";
    return decode.ragged ? "sequences of different lengths" : "";
  }
  PreparedDecode prepare(const DecodeCase& decode, const std::vector<DecodeInputs>& inputs) const override {
    PreparedDecode prepared{.works = {}, .kernel = name(), .once_per_step = {}};
    for (const DecodeInputs& each : inputs) prepared.works.push_back(work(decode, each));
    prepared.works = with_value_map(inputs, std::move(prepared.works));
    return prepared;
  }

 protected:
  /// Both must outlive the work.
  virtual DecodeWork work(const DecodeCase& decode, const DecodeInputs& inputs) const = 0;
};

/// What DecoderModel runs without decode kernels.
class AttendContender : public TorchContender {
 public:
  std::string name() const override { return "attend"; }

  PreparedDecode prepare(const DecodeCase& decode, const std::vector<DecodeInputs>& inputs) const override {
    PreparedDecode prepared = TorchContender::prepare(decode, inputs);
    const AttentionRequest request = request_of(decode, inputs.front());
    for (const AttentionKernel* kernel : attention_kernels()) {
      if (!kernel->missing(request).empty()) continue;
      prepared.kernel = "attend: " + kernel->name();
      break;
    }
    return prepared;
  }

 protected:
  DecodeWork work(const DecodeCase& decode, const DecodeInputs& inputs) const override {
    return [&decode, request = request_of(decode, inputs)] { return as_heads(decode, attend(request)); };
  }

 private:
  static AttentionRequest request_of(const DecodeCase& decode, const DecodeInputs& inputs) {
    AttentionRequest request;
    request.q = inputs.q.unsqueeze(2);
    request.k = inputs.k;
    request.v = inputs.v;
    request.first_query = decode.context - 1;
    request.scale = scale_of(decode);
    return request;
  }
};

enum class Backend { flash, cudnn, efficient, math };

/// Lets scaled_dot_product_attention take one backend only, and keeps it from explaining why it cannot.
class OneBackend {
 public:
  explicit OneBackend(Backend backend) : quiet_(&silence_) {
    at::Context& context = at::globalContext();
    before_ = {context.userEnabledFlashSDP(), context.userEnabledCuDNNSDP(), context.userEnabledMemEfficientSDP(),
               context.userEnabledMathSDP()};
    set({backend == Backend::flash, backend == Backend::cudnn, backend == Backend::efficient,
         backend == Backend::math});
  }
  ~OneBackend() { set(before_); }
  OneBackend(const OneBackend&) = delete;
  OneBackend& operator=(const OneBackend&) = delete;

 private:
  struct Silence : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  };
  static void set(const std::array<bool, 4>& on) {
    at::Context& context = at::globalContext();
    context.setSDPUseFlash(on[0]);
    context.setSDPUseCuDNN(on[1]);
    context.setSDPUseMemEfficient(on[2]);
    context.setSDPUseMath(on[3]);
  }

  std::array<bool, 4> before_{};
  Silence silence_;
  c10::WarningUtils::WarningHandlerGuard quiet_;
};

/// rows: the query heads of a KV head as its query tokens, so that nothing is copied per head; else enable_gqa.
class SdpaContender : public TorchContender {
 public:
  SdpaContender(std::string name, Backend backend, bool rows)
      : name_(std::move(name)), backend_(backend), rows_(rows) {}
  std::string name() const override { return name_; }

  std::string missing(const DecodeCase& decode, at::Device device) const override {
    const std::string why = TorchContender::missing(decode, device);
    const bool on_cpu = backend_ == Backend::flash || backend_ == Backend::math;
    return why.empty() && device.is_cpu() && !on_cpu ? "the CPU" : why;
  }

 protected:
  DecodeWork work(const DecodeCase& decode, const DecodeInputs& inputs) const override {
    const at::Tensor q = rows_ ? as_rows(decode, inputs.q) : inputs.q.unsqueeze(2);
    // Flash attention wants values as wide as keys; what it computes of the rotary columns is dropped.
    const at::Tensor v = backend_ == Backend::flash && decode.latent() ? inputs.k : inputs.v;
    const bool shared_keys = !rows_ && decode.group_size() > 1;
    return [&decode, q, k = inputs.k, v, shared_keys, backend = backend_] {
      const OneBackend only(backend);
      return as_heads(decode, at::scaled_dot_product_attention(q, k, v, {}, 0.0, false, scale_of(decode), shared_keys));
    };
  }

 private:
  std::string name_;
  Backend backend_;
  bool rows_;
};

/// Two batched products around a softmax: cuBLAS on CUDA, with scores in fp32.
class ProductsContender : public TorchContender {
 public:
  std::string name() const override { return "two-gemm"; }

 protected:
  DecodeWork work(const DecodeCase& decode, const DecodeInputs& inputs) const override {
    const at::Tensor q = as_rows(decode, inputs.q).flatten(0, 1);
    const at::Tensor k = inputs.k.flatten(0, 1).transpose(1, 2), v = inputs.v.flatten(0, 1);
    const bool wide = inputs.q.is_cuda() && inputs.q.scalar_type() != at::kFloat;
    const std::vector<int64_t> shape = {q.size(0), q.size(1), k.size(2)};
    return [&decode, q, k, v, wide, shape, options = q.options().dtype(wide ? at::kFloat : q.scalar_type())] {
      at::Tensor scores = at::empty(shape, options);
      const double scale = scale_of(decode);
      if (wide) {
        at::baddbmm_out(scores, scores, q, k, at::kFloat, 0, scale);
      } else {
        at::baddbmm_out(scores, scores, q, k, 0, scale);
      }
      return as_heads(decode, at::bmm(at::softmax(scores, -1).to(v.scalar_type()), v));
    };
  }
};

}  // namespace

void add_torch_contenders(std::vector<std::unique_ptr<Contender>>& list) {
  list.push_back(std::make_unique<AttendContender>());
  list.push_back(std::make_unique<SdpaContender>("sdpa-flash", Backend::flash, false));
  list.push_back(std::make_unique<SdpaContender>("sdpa-cudnn", Backend::cudnn, false));
  list.push_back(std::make_unique<SdpaContender>("sdpa-cudnn-rows", Backend::cudnn, true));
  list.push_back(std::make_unique<SdpaContender>("sdpa-efficient", Backend::efficient, true));
  list.push_back(std::make_unique<SdpaContender>("sdpa-math", Backend::math, true));
  list.push_back(std::make_unique<ProductsContender>());
}

}  // namespace cinch
