#include "attention/decode/kernel_trial.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "attention/cache_format.h"
#include "attention/decode/token_rows.h"
#include "attention/kernels/decode/reference.h"
#include "attention/plugin_kernel.h"
#include "attention/rope.h"
#include "attention/slot_rope.h"

namespace cinch {
namespace {

constexpr int64_t kSequences = 2, kTokens = 70;  // the first fills a page
constexpr std::array<int64_t, kSequences> kLengths = {kTokens, 5};
constexpr double kWorst = 2e-2;  // relative Frobenius error; 16-bit results are within 5e-3

class Trial {
 public:
  Trial(const CinchDecodeStep& shape, at::Device device, const DecodeFunctions& functions)
      : step_(shape),
        latent_(shape.kind == CINCH_DECODE_LATENT),
        device_(device),
        functions_(functions),
        type_(shape.type == CINCH_DECODE_FP16 ? at::kHalf : at::kBFloat16) {
    step_.batch = kSequences;
    make_inputs();
  }

  /// Relative error. Throws std::runtime_error with what a function refuses.
  double error() {
    const at::Tensor out = device_result();
    const decode::ReferenceResult exact = host_result();
    const float* numbers = out.const_data_ptr<float>();
    double difference = 0, norm = 0;
    for (size_t i = 0; i < exact.out.size(); ++i) {
      difference += std::pow(static_cast<double>(numbers[i]) - exact.out[i], 2);
      norm += exact.out[i] * exact.out[i];
    }
    return std::sqrt(difference / norm);
  }

 private:
  at::Tensor random(at::IntArrayRef sizes) {
    return at::randn(sizes, generator_, at::TensorOptions(at::kFloat)).to(type_);
  }
  int64_t key_heads() const { return latent_ ? 1 : step_.n_kv_heads; }
  int64_t scales() const { return step_.key_scales != 0 ? step_.n_kv_heads : 0; }
  /// Numbers of a head that are turned.
  int64_t rotary() const { return latent_ ? step_.qk_rope_head_dim : step_.head_dim; }

  void make_inputs() {
    const int64_t width = latent_ ? step_.kv_lora_rank : step_.head_dim;
    k_ = random({kSequences, key_heads(), kTokens, rotary()});
    v_ = random({kSequences, key_heads(), kTokens, width});
    if (scales() > 0) scales_ = random({kSequences, 1, kTokens, scales()}).sigmoid().add(0.5);
    q_rotary_ = random({kSequences, step_.n_heads, 1, rotary()});
    q_ = random({kSequences, step_.n_heads, 1, latent_ ? width + rotary() : width});
    const at::Tensor angles = at::rand({kTokens, rotary() / 2}, generator_, at::TensorOptions(at::kFloat)).mul(6.28);
    table_ = {angles.cos(), angles.sin()};
    if (step_.v_head_dim == 0) return;
    // Maps of heads begin 8 numbers after each other: different, and few.
    map_ = random({int64_t{step_.v_head_dim} * width + 8 * step_.n_heads}).mul(0.1);
    step_.value_map_row_stride = width;
    step_.value_map_head_stride = 8;
  }

  at::Tensor turned(const at::Tensor& x, const RotaryTable& table) const {
    return latent_ ? SlotRope::apply(x, table) : Rope::apply(x, table);
  }

  // On the host, by other means.

  decode::ReferenceResult host_result() const {
    CinchDecodeStep step = step_;
    step.block_table = nullptr;
    step.cache_format = CINCH_CACHE_16BIT;
    step.open = {};
    const at::Tensor keys = host_rows(), values = v_.contiguous(), q = host_queries();
    const auto dense = [](const at::Tensor& x) {
      return CinchDecodeCache{x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
    };
    step.keys = dense(keys);
    if (!latent_) step.values = dense(values);
    step.q = q.const_data_ptr();
    if (map_.defined()) step.value_map = map_.const_data_ptr();
    const std::array<int32_t, kSequences> lengths = {kLengths[0], kLengths[1]};
    step.lengths = lengths.data();
    return decode::reference_decode(step);
  }

  /// Keys, or entries as the cache gives them back, (2, heads, 70, width padded to a multiple of 8).
  at::Tensor host_rows() const {
    const at::Tensor keys = turned(k_, table_);
    if (!latent_) return keys.contiguous();
    std::vector<at::Tensor> columns = {v_, keys};
    if (scales_.defined()) columns.push_back(scales_);
    const at::Tensor rows = at::cat(columns, 3).squeeze(1);  // (2, 70, columns)
    const auto format = static_cast<CacheFormat>(step_.cache_format);
    const CacheColumns held{step_.kv_lora_rank, step_.qk_rope_head_dim, scales()};
    for (int64_t b = 0; b < kSequences; ++b) {
      const at::Tensor own = rows.narrow(0, b, 1).narrow(1, 0, kLengths.at(static_cast<size_t>(b)));
      own.copy_(as_cached(own, format, held));
    }
    return at::constant_pad_nd(rows, {0, (8 - rows.size(2) % 8) % 8}).unsqueeze(1);
  }

  at::Tensor host_queries() const {
    const at::Tensor q = q_.clone(), into = q.narrow(3, q.size(3) - rotary(), rotary());
    for (int64_t b = 0; b < kSequences; ++b) {
      const int64_t position = kLengths.at(static_cast<size_t>(b)) - 1;
      into.narrow(0, b, 1).copy_(
          turned(q_rotary_.narrow(0, b, 1), {table_.cos.narrow(0, position, 1), table_.sin.narrow(0, position, 1)}));
    }
    return q;
  }

  // On the device.

  /// (2, H, width) fp32 on the host.
  at::Tensor device_result() {
    const auto bytes = at::TensorOptions(at::kByte).device(device_);
    const int64_t element = step_.cache_format == CINCH_CACHE_16BIT ? 2 : 1;
    // NaN where nothing is written.
    const at::Tensor keys = at::full({3 * step_.keys.page_stride * element}, 255, bytes),
                     values = at::full({3 * step_.values.page_stride * 2}, 255, bytes),
                     open = at::full({kSequences * step_.open.page_stride * 2}, 255, bytes);
    step_.keys.data = keys.const_data_ptr();
    if (!latent_) step_.values.data = values.const_data_ptr();
    if (open.numel() > 0) step_.open.data = open.const_data_ptr();
    const at::Tensor table = at::tensor({2, 0, 1, 1}, at::kInt).to(device_);
    step_.block_table = table.const_data_ptr<int32_t>();
    step_.block_table_stride = 2;
    const at::Tensor lengths = at::tensor({int(kLengths[0]) - 1, int(kLengths[1]) - 1}, at::kInt).to(device_);
    step_.lengths = lengths.const_data_ptr<int32_t>();
    const at::Tensor q = q_.to(device_), q_rotary = q_rotary_.to(device_),
                     map = map_.defined() ? map_.to(device_) : map_;
    append(kTokens - 1, {}, {});
    lengths.add_(1);
    append(1, q_rotary, q.narrow(3, q.size(3) - rotary(), rotary()));
    step_.q = q.const_data_ptr();
    if (map.defined()) step_.value_map = map.const_data_ptr();
    return decode();
  }

  /// The tokens before the last, or the last, of every sequence.
  void append(int64_t tokens, const at::Tensor& q, const at::Tensor& q_out) {
    CinchCacheAppend append{};
    append.kind = step_.kind;
    append.type = step_.type;
    append.cache_format = step_.cache_format;
    append.pairs = latent_ ? CINCH_PAIRS_NEIGHBOURS : CINCH_PAIRS_HALVES;
    append.batch = step_.batch;
    append.tokens = static_cast<int32_t>(tokens);
    append.n_heads = step_.n_heads;
    append.n_kv_heads = step_.n_kv_heads;
    append.head_dim = step_.head_dim;
    append.kv_lora_rank = step_.kv_lora_rank;
    append.qk_rope_head_dim = step_.qk_rope_head_dim;
    append.rotary_dim = static_cast<int32_t>(rotary());
    append.key_scales = step_.key_scales;
    const at::Tensor cos = table_.cos.to(device_), sin = table_.sin.to(device_);
    append.cos = cos.const_data_ptr<float>();
    append.sin = sin.const_data_ptr<float>();
    const at::Tensor k = arriving(k_, tokens), v = arriving(v_, tokens);
    append.k = token_rows(k);
    append.v = token_rows(v);
    const at::Tensor key_scales = scales_.defined() ? arriving(scales_, tokens) : scales_;
    if (scales_.defined()) append.scales = token_rows(key_scales);
    if (q.defined()) {
      append.q = token_rows(q);
      rotate_to(q_out, append);
    }
    append.keys = step_.keys;
    append.values = step_.values;
    append.open = step_.open;
    append.block_table = step_.block_table;
    append.block_table_stride = step_.block_table_stride;
    append.lengths = step_.lengths;
    std::array<char, 256> reason{};
    check(functions_.append(&append, stream(), reason.data(), reason.size()), reason.data());
  }

  /// x (2, heads, 70, width): the last `tokens` of what each sequence has then, on the device; NaN before its first.
  at::Tensor arriving(const at::Tensor& x, int64_t tokens) const {
    const at::Tensor some = at::full({kSequences, x.size(1), tokens, x.size(3)}, NAN, x.options());
    for (int64_t b = 0; b < kSequences; ++b) {
      const int64_t length = kLengths.at(static_cast<size_t>(b));
      const int64_t first = tokens == 1 ? length - 1 : 0, count = tokens == 1 ? 1 : length - 1;
      some.select(0, b).narrow(1, tokens - count, count).copy_(x.select(0, b).narrow(1, first, count));
    }
    return some.to(device_);
  }

  at::Tensor decode() {
    CinchDecodeSizes sizes{};
    std::array<char, 256> reason{};
    check(functions_.sizes(&step_, &sizes, reason.data(), reason.size()), reason.data());
    const auto bytes = at::TensorOptions(at::kByte).device(device_);
    const at::Tensor plan = at::zeros({static_cast<int64_t>(sizes.plan_bytes)}, bytes),
                     scratch = at::zeros({static_cast<int64_t>(sizes.scratch_bytes)}, bytes);
    auto* const shares = static_cast<int32_t*>(plan.mutable_data_ptr());
    check(functions_.plan(shares, sizes.parts, step_.lengths, step_.batch, step_.window, stream(), reason.data(),
                          reason.size()),
          reason.data());
    step_.plan = shares;
    step_.scratch = scratch.mutable_data_ptr();
    const at::Tensor out =
        at::full({kSequences, step_.n_heads, step_.out_head_stride}, NAN, at::TensorOptions(type_).device(device_));
    step_.out = out.mutable_data_ptr();
    check(functions_.run(&step_, stream(), reason.data(), reason.size()), reason.data());
    return out.to(at::kCPU, at::kFloat);
  }

  void* stream() const { return device_.is_cpu() ? nullptr : stream_of(device_); }
  static void check(int32_t status, const char* reason) {
    if (status != 0) throw std::runtime_error(reason);
  }

  CinchDecodeStep step_;
  bool latent_;
  at::Device device_;
  const DecodeFunctions& functions_;
  at::ScalarType type_;
  at::Generator generator_ = at::make_generator<at::CPUGeneratorImpl>(7);  // the program's own draws stay as they are
  at::Tensor k_, v_, scales_;  // (2, heads, 70, width) on the host: token t of a sequence at t; scales may be undefined
  at::Tensor q_rotary_, q_;    // (2, H, 1, rotary), (2, H, 1, width)
  at::Tensor map_;             // numbers of all maps, or undefined
  RotaryTable table_;          // (70, rotary / 2) fp32 on the host
};

std::string tried(const CinchDecodeStep& shape, at::Device device, const DecodeFunctions& functions) {
  const c10::DeviceGuard guard(device);
  const at::NoGradGuard no_grad;
  try {
    const double error = Trial(shape, device, functions).error();
    return error < kWorst ? "" : fmt::format("a trial on {} gave a relative error of {:.2g}", device.str(), error);
  } catch (const c10::Error& fault) {
    return fmt::format("a trial on {} failed: {}", device.str(), fault.what_without_backtrace());
  } catch (const std::exception& fault) {
    return fmt::format("a trial on {} failed: {}", device.str(), fault.what());
  }
}

}  // namespace

std::string kernel_fault(const CinchDecodeStep& shape, c10::Device device, const DecodeFunctions& functions) {
  static std::mutex mutex;
  static std::map<std::string, std::string> faults;
  CinchDecodeStep key = shape;
  key.batch = 0;
  const std::string bytes(reinterpret_cast<const char*>(&key), sizeof key);
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = faults.try_emplace(fmt::format("{} {} {}", device.str(), fmt::ptr(&functions), bytes));
  if (is_new) found->second = tried(shape, device, functions);
  return found->second;
}

}  // namespace cinch
