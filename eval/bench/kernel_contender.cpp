#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <utility>

#include "core/errors.h"
#include "eval/bench/contenders.h"

namespace cinch {
namespace {

struct KernelName {
  const char* name;
  int32_t kernel;  // CinchDecodeKernel
};
constexpr std::array kKernels = {KernelName{"cinch", CINCH_DECODE_ANY}, KernelName{"mma", CINCH_DECODE_MMA},
                                 KernelName{"sm90", CINCH_DECODE_SM90}};

std::string kernel_name(int32_t kernel) {
  for (const KernelName& each : kKernels) {
    if (each.kernel == kernel && kernel != CINCH_DECODE_ANY) return each.name;
  }
  return fmt::format("kernel {}", kernel);
}

/// A cudaStream_t; the emulator's functions take none.
void* current_stream(at::Device device) {
  return device.is_cpu() ? nullptr : at::accelerator::getCurrentStream(device.index()).native_handle();
}

/// What all steps of a case share, and the arrays that they write.
class StepMemory {
 public:
  StepMemory(const DecodeFunctions& functions, const DecodeCase& decode, const DecodeInputs& inputs, int32_t kernel)
      : functions_(functions), device_(inputs.q.device()), lengths_(inputs.lengths) {
    CinchDecodeStep step = step_of(decode, inputs, kernel);
    CinchDecodeSizes sizes{};
    call([&](char* error, uint64_t size) { return functions_.sizes(&step, &sizes, error, size); });
    kernel_ = sizes.kernel;
    parts_ = sizes.parts;
    batch_ = step.batch;
    const auto bytes = at::TensorOptions(at::kByte).device(device_);
    plan_ = at::zeros({static_cast<int64_t>(sizes.plan_bytes)}, bytes);
    scratch_ = at::zeros({static_cast<int64_t>(sizes.scratch_bytes)}, bytes);
    plan();
  }

  int32_t kernel() const { return kernel_; }

  void plan() {
    call([&](char* error, uint64_t size) {
      return functions_.plan(static_cast<int32_t*>(plan_.data_ptr()), parts_, lengths_.const_data_ptr<int32_t>(),
                             batch_, 0, current_stream(device_), error, size);
    });
  }

  void run(CinchDecodeStep step, at::Tensor& out) const {
    step.out = out.data_ptr();
    step.plan = static_cast<const int32_t*>(plan_.const_data_ptr());
    step.scratch = scratch_.data_ptr();
    call([&](char* error, uint64_t size) { return functions_.run(&step, current_stream(device_), error, size); });
  }

  /// All but what a run adds.
  static CinchDecodeStep step_of(const DecodeCase& decode, const DecodeInputs& inputs, int32_t kernel) {
    CinchDecodeStep s{};
    s.kind = decode.latent() ? CINCH_DECODE_LATENT : CINCH_DECODE_GROUPED;
    s.type = inputs.q.scalar_type() == at::kHalf ? CINCH_DECODE_FP16 : CINCH_DECODE_BF16;
    s.kernel = kernel;
    s.batch = static_cast<int32_t>(decode.batch);
    s.n_heads = static_cast<int32_t>(decode.n_heads);
    s.n_kv_heads = static_cast<int32_t>(decode.latent() ? 1 : decode.n_kv_heads);
    s.head_dim = static_cast<int32_t>(decode.head_dim);
    s.kv_lora_rank = static_cast<int32_t>(decode.kv_lora_rank);
    s.qk_rope_head_dim = static_cast<int32_t>(decode.qk_rope_head_dim);
    s.v_head_dim = static_cast<int32_t>(decode.v_head_dim);
    s.scale = 1 / std::sqrt(static_cast<float>(decode.key_width()));
    s.q = inputs.q.const_data_ptr();
    s.q_batch_stride = inputs.q.stride(0);
    s.q_head_stride = inputs.q.stride(1);
    add_cache(decode, inputs, s);
    s.block_table = inputs.block_table.const_data_ptr<int32_t>();
    s.block_table_stride = inputs.block_table.stride(0);
    s.lengths = inputs.lengths.const_data_ptr<int32_t>();
    if (inputs.value_map.defined()) {
      s.value_map = inputs.value_map.const_data_ptr();
      s.value_map_head_stride = inputs.value_map.stride(0);
      s.value_map_row_stride = inputs.value_map.stride(1);
    }
    s.out_head_stride = decode.out_width();
    s.out_batch_stride = decode.n_heads * decode.out_width();
    return s;
  }

 private:
  static CinchDecodeCache cache_of(const at::Tensor& pages) {
    return {pages.const_data_ptr(), pages.stride(0), pages.stride(1), pages.stride(2)};
  }
  static void add_cache(const DecodeCase& decode, const DecodeInputs& inputs, CinchDecodeStep& s) {
    s.cache_format = static_cast<int32_t>(decode.format);
    if (inputs.packed.defined()) {
      s.keys = {inputs.packed.const_data_ptr(), inputs.packed.stride(0), 0, 0};
      if (inputs.open.defined())
        s.open = {inputs.open.const_data_ptr(), inputs.open.stride(0), 0, inputs.open.stride(1)};
      return;
    }
    s.keys = cache_of(inputs.k);
    if (!decode.latent()) s.values = cache_of(inputs.v);
  }

  template <typename Call>
  static void call(Call&& function) {
    std::array<char, 256> error{};
    if (function(error.data(), error.size()) != 0) throw UnsupportedError(error.data());
  }

  DecodeFunctions functions_;
  at::Device device_;
  at::Tensor lengths_, plan_, scratch_;
  int32_t kernel_ = 0, parts_ = 0, batch_ = 0;
};

class KernelContender : public Contender {
 public:
  KernelContender(const DecodeFunctions* functions, KernelName name) : functions_(functions), name_(name) {}
  std::string name() const override { return name_.name; }
  bool ours() const override { return true; }
  bool paged() const override { return true; }

  std::string missing(const DecodeCase&, at::Device) const override {
    return functions_ == nullptr ? "no decode kernels on this device" : "";
  }

  PreparedDecode prepare(const DecodeCase& decode, const std::vector<DecodeInputs>& inputs) const override {
    if (inputs.front().q.scalar_type() == at::kFloat) throw UnsupportedError("the kernels take bf16 and fp16");
    const auto memory = std::make_shared<StepMemory>(*functions_, decode, inputs.front(), name_.kernel);
    PreparedDecode prepared{
        .works = {}, .kernel = kernel_name(memory->kernel()), .once_per_step = [memory] { memory->plan(); }};
    for (const DecodeInputs& each : inputs) {
      at::Tensor out = at::empty({decode.batch, decode.n_heads, decode.out_width()}, each.q.options());
      prepared.works.emplace_back([memory, out, step = StepMemory::step_of(decode, each, name_.kernel)]() mutable {
        memory->run(step, out);
        return out;
      });
    }
    return prepared;
  }

 private:
  const DecodeFunctions* functions_;
  KernelName name_;
};

}  // namespace

void add_kernel_contenders(const DecodeFunctions* functions, std::vector<std::unique_ptr<Contender>>& list) {
  for (const KernelName& name : kKernels) list.push_back(std::make_unique<KernelContender>(functions, name));
}

}  // namespace cinch
