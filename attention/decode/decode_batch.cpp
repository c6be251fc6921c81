#include "attention/decode/decode_batch.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "attention/plugin_kernel.h"
#include "core/errors.h"

namespace cinch {
namespace {

constexpr int64_t kPage = CINCH_DECODE_PAGE;

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

DecodeBatch::DecodeBatch(const Sizes& sizes, const DecodeFunctions* functions)
    : sizes_(sizes),
      functions_(functions),
      lengths_(at::zeros({sizes.sequences}, at::TensorOptions(at::kInt).device(sizes.device))),
      host_lengths_(static_cast<size_t>(sizes.sequences), 0) {}

void* DecodeBatch::stream() const { return sizes_.device.is_cpu() ? nullptr : stream_of(sizes_.device); }

void DecodeBatch::set_length(int64_t sequence, int64_t tokens) {
  lengths_.narrow(0, sequence, 1).fill_(tokens);
  host_lengths_.at(static_cast<size_t>(sequence)) = tokens;
}

void DecodeBatch::count_on_device() { lengths_.add_(1); }

void DecodeBatch::count_on_host() {
  for (int64_t& length : host_lengths_) ++length;
}

int64_t DecodeBatch::pages_per_sequence(int64_t window) const {
  const int64_t all = divided_up(sizes_.max_tokens, kPage);
  if (window <= 0) return all;
  // A chunk's first query sees the window - 1 tokens before it; such a run of tokens may begin anywhere in a page.
  return std::min(all, divided_up(window - 1 + std::max<int64_t>(1, sizes_.prefill_chunk), kPage) + 1);
}

const at::Tensor& DecodeBatch::block_table(int64_t window) {
  const int64_t held = pages_per_sequence(window);
  at::Tensor& table = tables_[held];
  if (!table.defined()) {
    const int64_t pages = divided_up(sizes_.max_tokens, kPage);
    const at::Tensor within = at::arange(pages, at::kLong).remainder(held);
    const at::Tensor first = at::arange(sizes_.sequences, at::kLong).mul(held).unsqueeze(1);
    table = (first + within).to(at::kInt).to(sizes_.device);
  }
  return table;
}

const int32_t* DecodeBatch::plan(const CinchDecodeSizes& sizes, int64_t window) {
  for (const Plan& plan : plans_) {
    if (plan.parts == sizes.parts && plan.window == window) return plan.memory.const_data_ptr<int32_t>();
  }
  const auto count = static_cast<int64_t>(sizes.plan_bytes / sizeof(int32_t));
  plans_.push_back({sizes.parts, window, at::zeros({count}, at::TensorOptions(at::kInt).device(sizes_.device))});
  return plans_.back().memory.const_data_ptr<int32_t>();
}

void DecodeBatch::make_plans() {
  for (const Plan& plan : plans_) {
    std::array<char, 256> reason{};
    check(functions_->plan(plan.memory.mutable_data_ptr<int32_t>(), plan.parts, lengths_.const_data_ptr<int32_t>(),
                           static_cast<int32_t>(sizes_.sequences), static_cast<int32_t>(plan.window), stream(),
                           reason.data(), reason.size()),
          "cinch_decode_plan", reason.data());
  }
}

void DecodeBatch::reserve_scratch(uint64_t bytes) {
  const auto wanted = static_cast<int64_t>(bytes);
  if (scratch_.defined() && scratch_.numel() >= wanted) return;
  scratch_ = at::zeros({wanted}, at::TensorOptions(at::kByte).device(sizes_.device));
}

void* DecodeBatch::scratch() const { return scratch_.mutable_data_ptr(); }

const RotaryTable& DecodeBatch::rotary(const std::vector<double>& inv_freq, double scaling) {
  RotaryTable& table = rotary_[{inv_freq, scaling}];
  if (!table.cos.defined()) {
    table = rotary_table(inv_freq, 0, sizes_.max_tokens, at::kFloat, sizes_.device);
    if (scaling != 1.0) {
      table.cos.mul_(scaling);
      table.sin.mul_(scaling);
    }
  }
  return table;
}

void DecodeBatch::check(int32_t status, const char* function, const char* reason) const {
  if (status != 0) throw_kernel_error(function, sizes_.device, reason);
}

}  // namespace cinch
