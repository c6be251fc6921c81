#include "eval/bench/decode_inputs.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "attention/kernels/decode/page_layout.h"

namespace cinch {
namespace {

constexpr int64_t kChunk = 1000003;  // numbers; odd, so that rows and pages differ

/// Normal numbers. The CPU draws few and repeats them: nothing that is timed depends on more.
at::Tensor random_numbers(const std::vector<int64_t>& shape, at::ScalarType type, at::Device device) {
  const auto options = at::TensorOptions(type).device(device);
  if (!device.is_cpu()) return at::empty(shape, options).normal_();
  at::Tensor result = at::empty(shape, options);
  const at::Tensor flat = result.view(-1), chunk = at::randn({std::min(kChunk, flat.numel())}, at::kFloat).to(type);
  for (int64_t first = 0; first < flat.numel(); first += chunk.numel()) {
    const int64_t count = std::min(chunk.numel(), flat.numel() - first);
    flat.narrow(0, first, count).copy_(chunk.narrow(0, 0, count));
  }
  return result;
}

/// The 16-bit numbers at a byte offset of every page, as `type`: (P, count).
at::Tensor numbers_in(const at::Tensor& pages, int64_t offset, int64_t count, at::ScalarType type) {
  return pages.narrow(1, offset, 2 * count).view(type);
}

/// Pages of random codes with scales that make the numbers about as large as normal ones.
at::Tensor random_pages(int64_t count, const DecodeCase& decode, at::Device device) {
  const auto format = static_cast<int32_t>(decode.format);
  const auto columns = static_cast<int32_t>(decode.key_width());
  const decode::PageLayout layout = decode::page_layout(format, columns, 0);
  at::Tensor pages = at::empty({count, layout.page_bytes}, at::TensorOptions(at::kByte).device(device)).random_(0, 256);
  const auto uniform = [&](at::Tensor numbers, double low, double high) {
    numbers.copy_(at::empty(numbers.sizes(), at::TensorOptions(at::kFloat).device(device)).uniform_(low, high));
  };
  if (decode.format == CacheFormat::int4) {
    uniform(numbers_in(pages, layout.scales, columns, at::kHalf), 0.1, 0.3);
    uniform(numbers_in(pages, layout.zeros, columns, at::kHalf), -2.0, -1.0);
    return pages;
  }
  // e4m3 has numbers up to 448 and NaN where all bits but the sign's are 1: the lowest bit of the exponent stays 0.
  const bool fp8 = decode.format == CacheFormat::fp8;
  if (fp8) pages.narrow(1, 0, layout.scales).bitwise_and_(0xf7);
  uniform(numbers_in(pages, layout.scales, 2 * kCachePage, at::kBFloat16), fp8 ? 0.5 : 0.01, fp8 ? 1.0 : 0.02);
  return pages;
}

/// Page numbers of one sequence, (pages) int64 on the CPU.
at::Tensor pages_of(const DecodeInputs& inputs, int64_t sequence) {
  return inputs.block_table.select(0, sequence).to(at::kCPU, at::kLong);
}

/// rows (n, K, 64, D) as (K, n*64, D).
at::Tensor in_order(const at::Tensor& pages) { return pages.transpose(0, 1).flatten(1, 2); }

struct Rows {
  at::Tensor k, v;  // (K, S, Dk), (K, S, Dv') fp64; of packed caches on the CPU
};

Rows packed_rows(const DecodeCase& decode, const DecodeInputs& inputs, int64_t sequence, int64_t length) {
  const int64_t open = decode.format == CacheFormat::int4 ? length % kCachePage : 0;
  const at::Tensor pages =
      inputs.packed.index_select(0, pages_of(inputs, sequence).to(inputs.packed.device())).cpu().unsqueeze(0);
  at::Tensor rows =
      unpacked_rows(pages, length - open, decode.format, decode.columns(), inputs.q.scalar_type()).to(at::kDouble);
  if (open > 0) {
    const at::Tensor last = inputs.open.select(0, sequence).narrow(0, 0, open);
    rows = at::cat({rows, last.to(at::kCPU, at::kDouble).unsqueeze(0)}, 1);
  }
  return {rows, rows.narrow(2, 0, decode.kv_lora_rank)};
}

Rows cached_rows(const DecodeCase& decode, const DecodeInputs& inputs, int64_t sequence) {
  const int64_t length = inputs.host_lengths[static_cast<size_t>(sequence)];
  if (inputs.packed.defined()) return packed_rows(decode, inputs, sequence, length);
  at::Tensor k, v;
  if (inputs.paged()) {
    const at::Tensor pages = pages_of(inputs, sequence).to(inputs.k.device());
    k = in_order(inputs.k.index_select(0, pages));
    v = in_order(inputs.v.index_select(0, pages));
  } else {
    k = inputs.k.select(0, sequence);
    v = inputs.v.select(0, sequence);
  }
  return {k.narrow(1, 0, length).to(at::kDouble), v.narrow(1, 0, length).to(at::kDouble)};
}

/// The first, the last and some between, at most `most` of `count`.
std::vector<int64_t> spread(int64_t count, int64_t most) {
  std::set<int64_t> chosen;
  for (int64_t i = 0; i < most; ++i) chosen.insert(i * (count - 1) / std::max<int64_t>(most - 1, 1));
  return {chosen.begin(), chosen.end()};
}

}  // namespace

std::vector<DecodeInputs> make_inputs(const DecodeCase& decode, int64_t copies, bool paged, at::ScalarType type,
                                      at::Device device) {
  const int64_t pages = decode.batch * decode.pages_per_sequence();
  const auto to_device = [&](const at::Tensor& host) { return host.to(device); };
  std::vector<DecodeInputs> all(static_cast<size_t>(copies));
  for (DecodeInputs& inputs : all) {
    inputs.host_lengths = decode.lengths();
    inputs.lengths = to_device(at::tensor(inputs.host_lengths, at::kInt));
    inputs.q = random_numbers({decode.batch, decode.n_heads, decode.key_width()}, type, device);
    if (decode.v_head_dim > 0) {
      // Of a map's sums of R products, numbers of about one.
      inputs.value_map = random_numbers({decode.n_heads, decode.v_head_dim, decode.kv_lora_rank}, type, device)
                             .mul_(1 / std::sqrt(static_cast<double>(decode.kv_lora_rank)));
    }
    if (paged) inputs.block_table = to_device(at::randperm(pages, at::kInt).view({decode.batch, -1}));
    if (decode.format != CacheFormat::sixteen_bit) {
      inputs.packed = random_pages(pages, decode, device);
      if (decode.format == CacheFormat::int4)
        inputs.open = random_numbers({decode.batch, kCachePage, decode.key_width()}, type, device);
      continue;
    }
    const int64_t first = paged ? pages : decode.batch, tokens = paged ? kCachePage : decode.longest();
    const int64_t heads = decode.latent() ? 1 : decode.n_kv_heads;
    inputs.k = random_numbers({first, heads, tokens, decode.key_width()}, type, device);
    inputs.v = decode.latent() ? inputs.k.narrow(-1, 0, decode.kv_lora_rank)
                               : random_numbers({first, heads, tokens, decode.head_dim}, type, device);
  }
  return all;
}

at::Tensor reference_heads(const DecodeCase& decode, const DecodeInputs& inputs, int64_t sequence,
                           const std::vector<int64_t>& heads) {
  const Rows rows = cached_rows(decode, inputs, sequence);
  const at::Tensor q = inputs.q.select(0, sequence).to(rows.k.device(), at::kDouble);
  std::vector<at::Tensor> results;
  for (const int64_t head : heads) {
    const int64_t kv_head = decode.latent() ? 0 : head / decode.group_size();
    const at::Tensor scores = rows.k[kv_head].mv(q[head]) / std::sqrt(static_cast<double>(decode.key_width()));
    at::Tensor out = rows.v[kv_head].t().mv(at::softmax(scores, 0));
    if (inputs.value_map.defined()) out = inputs.value_map[head].to(out.device(), at::kDouble).mv(out);
    results.push_back(out);
  }
  return at::stack(results);
}

DecodeReference::DecodeReference(const DecodeCase& decode, const DecodeInputs& inputs)
    : heads_(spread(decode.n_heads, 4)), sequences_(spread(decode.batch, 3)) {
  for (const int64_t sequence : sequences_)
    want_.push_back(reference_heads(decode, inputs, sequence, heads_).to(at::kCPU));
}

double DecodeReference::error_of(const at::Tensor& out) const {
  if (!at::isfinite(out).all().item<bool>()) return INFINITY;
  const at::Tensor chosen = at::tensor(heads_, at::kLong).to(out.device());
  double worst = 0;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const at::Tensor found = out.select(0, sequences_[i]).index_select(0, chosen).to(at::kCPU, at::kDouble);
    worst = std::max(worst, ((found - want_[i]).norm() / want_[i].norm()).item<double>());
  }
  return worst;
}

}  // namespace cinch
