#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <cstring>

#include "attention/kernels/cudnn/cudnn_library.h"
#include "attention/kernels/cudnn/cudnn_rules.h"
#include "attention/kernels/kernels.h"
#include "attention/plugin_kernel.h"
#include "attention/recorded.h"
#include "core/errors.h"
#include "core/progress.h"

namespace cinch {
namespace {

// A plan takes cuDNN about half a second. A training run repeats its shapes; a prompt repays it only when it is long.
constexpr int64_t kLongPrompt = 4096;  // tokens
// Deterministic gradients take B*H*T*S*2 bytes: beyond this another kernel is the better one.
constexpr uint64_t kMostWorkspace = uint64_t{4} << 30;

constexpr int64_t kAlignment = 16;  // bytes, of rows and pointers
constexpr int64_t kStep = 8;        // elements of that

using Text = std::array<char, 1024>;

/// What a pass reads where it lies: else it gets a copy.
bool is_readable(const at::Tensor& x) {
  if (x.stride(3) != 1 || reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kAlignment != 0) return false;
  for (int64_t axis = 0; axis < 3; ++axis) {
    if (x.size(axis) > 1 && (x.stride(axis) <= 0 || x.stride(axis) % kStep != 0)) return false;
  }
  return true;
}

at::Tensor readable(const at::Tensor& x) { return is_readable(x) ? x : x.clone(at::MemoryFormat::Contiguous); }

/// Those of readable(x). An axis of one element gets one stride whatever it is written as, for one plan.
CinchCudnnStrides strides_of(const at::Tensor& x) {
  const bool copied = !is_readable(x);
  const std::array<int64_t, 3> contiguous = {x.size(1) * x.size(2) * x.size(3), x.size(2) * x.size(3), x.size(3)};
  const auto stride = [&](int64_t axis) {
    if (x.size(axis) == 1) return x.numel();
    return copied ? contiguous[static_cast<size_t>(axis)] : x.stride(axis);
  };
  return {stride(0), stride(1), stride(2)};
}

/// Heads of one token side by side, as the layers around attention have them.
CinchCudnnStrides by_token(int64_t heads, int64_t tokens, int64_t width) {
  return {heads * tokens * width, width, heads * width};
}

/// (B, heads, tokens, width) of these strides, not a view of another tensor.
at::Tensor empty_by_token(const at::Tensor& like, int64_t heads, int64_t tokens, int64_t width) {
  const CinchCudnnStrides strides = by_token(heads, tokens, width);
  return at::empty_strided({like.size(0), heads, tokens, width}, {strides.batch, strides.head, strides.token, 1},
                           like.options());
}

struct Inputs {
  at::Tensor q, k, v;
  double scale;
  int64_t window;  // 0: none
};

CinchCudnnShape shape_of(const Inputs& in, CinchCudnnPass pass, bool deterministic) {
  CinchCudnnShape shape;
  std::memset(&shape, 0, sizeof shape);  // compared as bytes
  shape.batch = in.q.size(0), shape.heads = in.q.size(1), shape.queries = in.q.size(2);
  shape.kv_heads = in.k.size(1), shape.keys = in.k.size(2);
  shape.key_width = in.k.size(3), shape.value_width = in.v.size(3);
  shape.window = in.window;
  shape.q = strides_of(in.q), shape.k = strides_of(in.k), shape.v = strides_of(in.v);
  shape.out = by_token(shape.heads, shape.queries, shape.value_width);
  shape.scale = static_cast<float>(in.scale);
  shape.type = in.q.scalar_type() == at::kHalf ? CINCH_CUDNN_FP16 : CINCH_CUDNN_BF16;
  shape.pass = pass;
  if (pass != CINCH_CUDNN_BACKWARD) return shape;
  shape.dq = by_token(shape.heads, shape.queries, shape.key_width);
  shape.dk = by_token(shape.kv_heads, shape.keys, shape.key_width);
  shape.dv = by_token(shape.kv_heads, shape.keys, shape.value_width);
  shape.deterministic = deterministic ? 1 : 0;
  return shape;
}

/// Throws Error where there is no cuDNN.
CinchCudnnTarget target_of(at::Device device) {
  Text reason{};
  CinchCudnnTarget target{device.index(), 0, nullptr};
  if (cudnn_functions().capability(target.device, &target.compute_capability, reason.data(), reason.size()) !=
      CINCH_CUDNN_OK) {
    throw Error(reason.data());
  }
  return target;
}

void run_pass(const CinchCudnnShape& shape, at::Device device, CinchCudnnTensors tensors) {
  Text reason{};
  const CinchCudnnTarget target = target_of(device);
  CinchCudnnPlan plan{};
  int32_t status = cudnn_functions().plan(&shape, &target, 1, &plan, reason.data(), reason.size());
  if (status == CINCH_CUDNN_OK) {
    const auto bytes = static_cast<int64_t>(std::max<uint64_t>(plan.workspace_bytes, 1));
    // Of the stream that computes: LibTorch gives the memory to later work of the same stream only.
    const at::Tensor workspace = at::empty({bytes}, at::TensorOptions(at::kByte).device(device));
    tensors.workspace = workspace.mutable_data_ptr();
    status = cudnn_functions().run(&shape, &target, &tensors, stream_of(device), reason.data(), reason.size());
  }
  if (status != CINCH_CUDNN_OK) throw_kernel_error("cuDNN attention", device, reason.data());
}

struct Result {
  at::Tensor out;    // (B, H, T, Dv)
  at::Tensor stats;  // (B, H, T) fp32: log of the sum of exponentials; undefined where not asked for
};

/// The inputs are readable.
Result run_forward(const Inputs& in, bool with_stats) {
  const CinchCudnnShape shape = shape_of(in, with_stats ? CINCH_CUDNN_FORWARD_STATS : CINCH_CUDNN_FORWARD, false);
  Result result;
  result.out = empty_by_token(in.q, shape.heads, shape.queries, shape.value_width);
  if (with_stats) result.stats = at::empty({shape.batch, shape.heads, shape.queries}, in.q.options().dtype(at::kFloat));
  CinchCudnnTensors tensors{};
  tensors.q = in.q.const_data_ptr(), tensors.k = in.k.const_data_ptr(), tensors.v = in.v.const_data_ptr();
  tensors.out = result.out.mutable_data_ptr();
  tensors.stats = with_stats ? result.stats.mutable_data_ptr<float>() : nullptr;
  run_pass(shape, in.q.device(), tensors);
  return result;
}

/// Gradients of q, k, v. The inputs are readable; `result` is of run_forward with stats.
std::array<at::Tensor, 3> run_backward(const Inputs& in, const Result& result, at::Tensor gradient,
                                       bool deterministic) {
  const CinchCudnnShape shape = shape_of(in, CINCH_CUDNN_BACKWARD, deterministic);
  if (gradient.strides() != result.out.strides() || !is_readable(gradient)) {
    gradient = at::empty_strided(result.out.sizes(), result.out.strides(), result.out.options()).copy_(gradient);
  }
  const at::Tensor dq = empty_by_token(in.q, shape.heads, shape.queries, shape.key_width);
  const at::Tensor dk = empty_by_token(in.k, shape.kv_heads, shape.keys, shape.key_width);
  const at::Tensor dv = empty_by_token(in.v, shape.kv_heads, shape.keys, shape.value_width);
  CinchCudnnTensors tensors{};
  tensors.q = in.q.const_data_ptr(), tensors.k = in.k.const_data_ptr(), tensors.v = in.v.const_data_ptr();
  tensors.out = const_cast<void*>(result.out.const_data_ptr());  // read by this pass
  tensors.stats = const_cast<float*>(result.stats.const_data_ptr<float>());
  tensors.dout = gradient.const_data_ptr();
  tensors.dq = dq.mutable_data_ptr(), tensors.dk = dk.mutable_data_ptr(), tensors.dv = dv.mutable_data_ptr();
  run_pass(shape, in.q.device(), tensors);
  return {dq, dk, dv};
}

struct RecordedCudnn : torch::autograd::Function<RecordedCudnn> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, double scale, int64_t window, bool deterministic) {
    const Inputs in{readable(q), readable(k), readable(v), scale, window};
    const Result result = run_forward(in, true);
    context->save_for_backward({in.q, in.k, in.v, result.out, result.stats});
    context->saved_data["scale"] = scale;
    context->saved_data["window"] = window;
    context->saved_data["deterministic"] = deterministic;
    return result.out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "cuDNN attention has no second derivatives");
    if (!gradients[0].defined()) return {{}, {}, {}, {}, {}, {}};
    const auto saved = context->get_saved_variables();
    const c10::DeviceGuard guard(saved[0].device());
    const Inputs in{saved[0], saved[1], saved[2], context->saved_data["scale"].toDouble(),
                    context->saved_data["window"].toInt()};
    const auto [dq, dk, dv] =
        run_backward(in, {saved[3], saved[4]}, gradients[0], context->saved_data["deterministic"].toBool());
    return {dq, dk, dv, {}, {}, {}};
  }
};

class CudnnKernel : public AttentionKernel {
 public:
  std::string name() const override { return "cudnn"; }

  std::string missing(const AttentionRequest& request) const override {
    const at::Tensor& q = request.q;
    if (!q.is_cuda()) return "CPU";
    if (at::elementSize(q.scalar_type()) != 2) return "types other than fp16 and bf16";
    if (request.softcap > 0) return "soft cap";
    // A plan is of one number of documents and one longest one, which differ in every batch.
    if (request.documents.defined()) return "documents";
    if (request.first_query + q.size(2) != request.first_key + request.k.size(2)) return "keys behind the last query";
    try {
      return missing_in_passes(request);
    } catch (const Error& error) {
      return error.what();
    }
  }

  std::string leaves(const AttentionRequest& request) const override {
    if (!is_recorded({request.q, request.k, request.v}) && request.q.size(2) < kLongPrompt) {
      return fmt::format("prompts of less than {} tokens, for which making a plan takes longer than it saves",
                         kLongPrompt);
    }
    const bool plain = request.k.size(3) == request.v.size(3) && window_is_idle(request);
    return plain ? "to sdpa what reaches cuDNN through it" : "";
  }

  bool is_checked_first() const override { return true; }

  at::Tensor run(const AttentionRequest& request) const override {
    const c10::DeviceGuard guard(request.q.device());
    if (const std::string refusal = refusal_of(request, /*build=*/true); !refusal.empty()) {
      return run_elsewhere(request, refusal);
    }
    const Inputs in = inputs_of(request);
    if (is_recorded({in.q, in.k, in.v})) {
      return RecordedCudnn::apply(in.q, in.k, in.v, in.scale, in.window, deterministic());
    }
    return run_forward({readable(in.q), readable(in.k), readable(in.v), in.scale, in.window}, false).out;
  }

 private:
  static bool deterministic() { return at::globalContext().deterministicAlgorithms(); }

  static Inputs inputs_of(const AttentionRequest& request) {
    return {request.q, request.k, request.v, request.scale, window_is_idle(request) ? 0 : request.window};
  }

  static std::vector<CinchCudnnShape> passes_of(const AttentionRequest& request) {
    const Inputs in = inputs_of(request);
    if (!is_recorded({in.q, in.k, in.v})) return {shape_of(in, CINCH_CUDNN_FORWARD, false)};
    return {shape_of(in, CINCH_CUDNN_FORWARD_STATS, false), shape_of(in, CINCH_CUDNN_BACKWARD, deterministic())};
  }

  static std::string missing_in_passes(const AttentionRequest& request) {
    const int32_t capability = target_of(request.q.device()).compute_capability;
    for (const CinchCudnnShape& shape : passes_of(request)) {
      if (std::string missing = missing_in_cudnn(shape, capability); !missing.empty()) return missing;
      if (cudnn_workspace_bound(shape) > kMostWorkspace) {
        return fmt::format("a workspace of less than {} GiB for this many tokens{}", kMostWorkspace >> 30,
                           shape.deterministic != 0 ? ", deterministic" : "");
      }
    }
    return refusal_of(request, /*build=*/false);
  }

  /// Why cuDNN has no plan for a pass; empty where it has one, or without `build` has not been asked.
  static std::string refusal_of(const AttentionRequest& request, bool build) {
    const CinchCudnnTarget target = target_of(request.q.device());
    for (const CinchCudnnShape& shape : passes_of(request)) {
      Text reason{};
      CinchCudnnPlan plan{};
      const int32_t status =
          cudnn_functions().plan(&shape, &target, build ? 1 : 0, &plan, reason.data(), reason.size());
      if (status == CINCH_CUDNN_REFUSED) return fmt::format("a plan of cuDNN's ({})", reason.data());
      if (status == CINCH_CUDNN_FAILED) throw_kernel_error("cuDNN attention", request.q.device(), reason.data());
    }
    return "";
  }

  /// The rules said that there is a kernel, and cuDNN says that there is none. Once: missing() knows it from now on.
  at::Tensor run_elsewhere(const AttentionRequest& request, const std::string& refusal) const {
    for (const AttentionKernel* kernel : attention_kernels()) {
      if (kernel == this || !kernel->missing(request).empty()) continue;
      log_warning(fmt::format("attention runs on {} where cudnn was to run: it misses {}", kernel->name(), refusal));
      return kernel->run(request);
    }
    throw UnsupportedError(fmt::format("no kernel covers this attention: cudnn misses {}", refusal));
  }
};

}  // namespace

const AttentionKernel& cudnn_kernel() {
  static const CudnnKernel kernel;
  return kernel;
}

}  // namespace cinch
