#include "attention/decode/step_shape.h"

#include <fmt/format.h>

#include <array>
#include <mutex>
#include <set>

#include "attention/decode/kernel_trial.h"
#include "core/errors.h"
#include "core/progress.h"

namespace cinch {
namespace {

constexpr int64_t kPage = CINCH_DECODE_PAGE;
constexpr int64_t kWidestValue = 512;  // of the value map in the kernels

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

void describe_grouped(const AttentionSpec& spec, CinchDecodeStep& step) {
  step.kind = CINCH_DECODE_GROUPED;
  step.n_kv_heads = static_cast<int32_t>(spec.n_kv_heads);
  step.head_dim = static_cast<int32_t>(spec.head_dim);
  step.keys.token_stride = spec.head_dim;
  step.keys.head_stride = kPage * spec.head_dim;
  step.keys.page_stride = spec.n_kv_heads * kPage * spec.head_dim;
  step.values = step.keys;
  step.q_head_stride = step.out_head_stride = spec.head_dim;
}

void describe_latent(const AttentionSpec& spec, CacheFormat format, CinchDecodeStep& step) {
  step.kind = CINCH_DECODE_LATENT;
  step.key_scales = spec.key_scale_tail ? 1 : 0;
  step.n_kv_heads = spec.key_scale_tail ? static_cast<int32_t>(spec.n_kv_heads) : 1;
  step.kv_lora_rank = static_cast<int32_t>(spec.kv_lora_rank);
  step.qk_rope_head_dim = static_cast<int32_t>(spec.qk_rope_head_dim);
  step.cache_format = static_cast<int32_t>(format);
  const int64_t row = padded_row(spec);
  if (format == CacheFormat::sixteen_bit) {
    step.keys.token_stride = row;
    step.keys.page_stride = kPage * row;
  } else {
    step.keys.page_stride = page_bytes(format, cache_columns(spec));
  }
  if (format == CacheFormat::int4) {
    step.open.token_stride = row;
    step.open.page_stride = kPage * row;
  }
  const bool mapped = spec.v_head_dim % 8 == 0 && spec.v_head_dim <= kWidestValue;
  if (mapped) {
    step.v_head_dim = static_cast<int32_t>(spec.v_head_dim);
    step.value_map_row_stride = spec.kv_lora_rank;
    step.value_map_head_stride = (spec.qk_nope_head_dim + spec.v_head_dim) * spec.kv_lora_rank;
  }
  step.q_head_stride = spec.kv_lora_rank + spec.qk_rope_head_dim;
  step.out_head_stride = mapped ? spec.v_head_dim : spec.kv_lora_rank;
}

/// Why step.kernel does not cover the step; empty where it does.
std::string missing(const CinchDecodeStep& step, const DecodeFunctions& functions, CinchDecodeSizes& sizes) {
  std::array<char, 256> reason{};
  if (functions.sizes(&step, &sizes, reason.data(), reason.size()) != 0) return reason.data();
  return sizes.kernel == step.kernel ? "" : "not among these kernels";
}

std::string why_none(const StepRequest& request, const DecodeFunctions* functions) {
  if (request.kernel == DecodeKernel::attend) return "asked for";
  if (functions == nullptr) return "no decode kernels on this device";
  if (request.dtype != at::kBFloat16 && request.dtype != at::kHalf)
    return fmt::format("decode kernels take bf16 and fp16, not {}", at::toString(request.dtype));
  return {};
}

/// Once per fault: a kernel that is wrong where it is to run is no matter of shapes.
void warn_of_fault(DecodeKernel kernel, const std::string& reason) {
  static std::mutex mutex;
  static std::set<std::string> known;
  const std::lock_guard lock(mutex);
  const std::string text = fmt::format("the decode kernel {} is not used: {}", name_of(kernel), reason);
  if (known.insert(text).second) log_warning(text);
}

}  // namespace

int64_t padded_row(const AttentionSpec& spec) { return rounded_up(spec.kv_elements(), 8); }

CinchDecodeStep decode_step_shape(const AttentionSpec& spec, const StepRequest& request) {
  if (request.dtype != at::kBFloat16 && request.dtype != at::kHalf)
    throw UnsupportedError(fmt::format("decode kernels take bf16 and fp16, not {}", at::toString(request.dtype)));
  CinchDecodeStep step{};
  step.type = request.dtype == at::kHalf ? CINCH_DECODE_FP16 : CINCH_DECODE_BF16;
  step.batch = static_cast<int32_t>(request.sequences);
  step.n_heads = static_cast<int32_t>(spec.n_heads);
  step.window = static_cast<int32_t>(spec.window);
  step.scale = static_cast<float>(spec.scale);
  step.softcap = static_cast<float>(spec.softcap);
  if (spec.kind == AttentionKind::latent) {
    describe_latent(spec, request.format, step);
  } else {
    describe_grouped(spec, step);
  }
  step.q_batch_stride = spec.n_heads * step.q_head_stride;
  step.out_batch_stride = spec.n_heads * step.out_head_stride;
  return step;
}

KernelSearch find_decode_kernel(const AttentionSpec& spec, const StepRequest& request,
                                const DecodeFunctions* functions) {
  KernelSearch search;
  const bool forced = request.kernel == DecodeKernel::mma || request.kernel == DecodeKernel::sm90;
  const auto refuse = [&] {
    if (forced) {
      throw UnsupportedError(
          fmt::format("the decode kernel {} cannot run: {}", name_of(request.kernel), search.choice.why),
          "--kernel auto takes the first kernel that covers a layer");
    }
    return search;
  };
  search.choice.why = why_none(request, functions);
  if (!search.choice.why.empty()) return refuse();
  search.step = decode_step_shape(spec, request);
  for (const DecodeKernel kernel : {DecodeKernel::sm90, DecodeKernel::mma}) {
    if (forced && kernel != request.kernel) continue;
    search.step.kernel = kernel == DecodeKernel::sm90 ? CINCH_DECODE_SM90 : CINCH_DECODE_MMA;
    std::string reason = missing(search.step, *functions, search.sizes);
    if (reason.empty() && request.tried_on) {
      reason = kernel_fault(search.step, *request.tried_on, *functions);
      if (!reason.empty()) warn_of_fault(kernel, reason);
    }
    if (reason.empty()) {
      search.choice.kernel = kernel;
      return search;
    }
    search.choice.why += (search.choice.why.empty() ? "" : "; ") + reason;
  }
  return refuse();
}

}  // namespace cinch
