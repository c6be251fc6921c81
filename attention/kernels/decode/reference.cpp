#include "attention/kernels/decode/reference.h"

#include <cmath>
#include <cstddef>
#include <limits>

#include "attention/kernels/decode/page_pack.h"
#include "attention/kernels/decode/split_plan.h"
#include "attention/kernels/warp/numbers.h"

namespace cinch::decode {
namespace {

double number(const CinchDecodeStep& step, const void* data, int64_t index) {
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return step.type == CINCH_DECODE_BF16 ? Bf16::to_float(bits) : Fp16::to_float(bits);
}

/// Where token `token` of `sequence` begins, for KV head `head`.
int64_t token_index(const CinchDecodeStep& step, const CinchDecodeCache& cache, int sequence, int head, int token) {
  const int64_t in_head = head * cache.head_stride;
  if (step.block_table == nullptr) return in_head + sequence * cache.page_stride + token * cache.token_stride;
  const int64_t page = step.block_table[sequence * step.block_table_stride + token / CINCH_DECODE_PAGE];
  return in_head + page * cache.page_stride + token % CINCH_DECODE_PAGE * cache.token_stride;
}

double score(const CinchDecodeStep& step, int sequence, int head, int token) {
  const bool latent = step.kind == CINCH_DECODE_LATENT;
  const int kv_head = head / (step.n_heads / step.n_kv_heads);
  const int64_t query = sequence * step.q_batch_stride + head * step.q_head_stride;
  const int64_t key = token_index(step, step.keys, sequence, latent ? 0 : kv_head, token);
  const int rank = latent ? step.kv_lora_rank : step.head_dim;
  double sum = 0;
  for (int i = 0; i < rank; ++i) sum += number(step, step.q, query + i) * number(step, step.keys.data, key + i);
  if (latent) {
    const int own = step.rope_per_kv_head != 0 ? kv_head * step.qk_rope_head_dim : 0;
    for (int i = 0; i < step.qk_rope_head_dim; ++i)
      sum += number(step, step.q, query + rank + i) * number(step, step.keys.data, key + rank + own + i);
    const int rope = step.qk_rope_head_dim * (step.rope_per_kv_head != 0 ? step.n_kv_heads : 1);
    if (step.key_scales != 0) sum *= number(step, step.keys.data, key + rank + rope + kv_head);
  }
  sum *= static_cast<double>(step.scale);
  const auto cap = static_cast<double>(step.softcap);
  return cap > 0 ? cap * std::tanh(sum / cap) : sum;
}

/// Softmax-weighted sum of values; returns the log-sum-exp.
double attend(const CinchDecodeStep& step, int sequence, int head, std::vector<double>& sums) {
  const bool latent = step.kind == CINCH_DECODE_LATENT;
  const CinchDecodeCache& cache = latent ? step.keys : step.values;
  const int kv_head = latent ? 0 : head / (step.n_heads / step.n_kv_heads);
  const int length = step.lengths[sequence];
  const int first = step.window > 0 && length > step.window ? length - step.window : 0;
  std::vector<double> scores;
  double top = -std::numeric_limits<double>::infinity(), total = 0;
  for (int token = first; token < length; ++token) {
    scores.push_back(score(step, sequence, head, token));
    top = scores.back() > top ? scores.back() : top;
  }
  for (double& value : scores) total += value = std::exp(value - top);
  for (int token = first; token < length; ++token) {
    const int64_t at = token_index(step, cache, sequence, kv_head, token);
    const double weight = scores[static_cast<size_t>(token - first)] / total;
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += weight * number(step, cache.data, at + static_cast<int64_t>(i));
  }
  return top + std::log(total);
}

}  // namespace

int query_width(const CinchDecodeStep& step) {
  return step.kind == CINCH_DECODE_LATENT ? step.kv_lora_rank + step.qk_rope_head_dim : step.head_dim;
}
int out_width(const CinchDecodeStep& step) {
  if (step.kind == CINCH_DECODE_GROUPED) return step.head_dim;
  return step.v_head_dim > 0 ? step.v_head_dim : step.kv_lora_rank;
}
int row_width(const CinchDecodeStep& step) {
  if (step.kind == CINCH_DECODE_GROUPED) return step.head_dim;
  return step.kv_lora_rank + step.qk_rope_head_dim * (step.rope_per_kv_head != 0 ? step.n_kv_heads : 1) +
         (step.key_scales != 0 ? step.n_kv_heads : 0);
}

SixteenBitStep in_sixteen_bits(const CinchDecodeStep& step) {
  const int width = row_width(step), scales = step.key_scales != 0 ? step.n_kv_heads : 0;
  const PageShape shape{step.cache_format, step.type, step.kv_lora_rank, width - scales - step.kv_lora_rank, scales};
  int longest = 1;
  for (int b = 0; b < step.batch; ++b) longest = step.lengths[b] > longest ? step.lengths[b] : longest;
  SixteenBitStep result;
  CinchDecodeStep& s = result.step = step;
  s.cache_format = CINCH_CACHE_16BIT;
  s.block_table = nullptr;
  s.keys = {nullptr, 0, 0, (width + 7) / 8 * 8};
  s.keys.page_stride = longest * s.keys.token_stride;
  result.rows.assign(static_cast<size_t>(step.batch * s.keys.page_stride), 0x7fff);
  s.keys.data = result.rows.data();
  std::vector<float> row(static_cast<size_t>(width));
  for (int b = 0; b < step.batch; ++b) {
    const int length = step.lengths[b], packed = step.cache_format == CINCH_CACHE_INT4 ? length / 64 * 64 : length;
    for (int token = first_visible(length, step.window); token < length; ++token) {
      uint16_t* const to = result.rows.data() + b * s.keys.page_stride + token * s.keys.token_stride;
      if (token >= packed) {
        const auto* const open = static_cast<const uint16_t*>(step.open.data) + b * step.open.page_stride;
        for (int i = 0; i < width; ++i) to[i] = open[token % CINCH_DECODE_PAGE * step.open.token_stride + i];
        continue;
      }
      const int64_t page = step.block_table[b * step.block_table_stride + token / CINCH_DECODE_PAGE];
      unpack_token(shape, static_cast<const uint8_t*>(step.keys.data) + page * step.keys.page_stride,
                   token % CINCH_DECODE_PAGE, row.data());
      for (size_t i = 0; i < row.size(); ++i)
        to[i] = step.type == CINCH_DECODE_BF16 ? Bf16::from_float(row[i]) : Fp16::from_float(row[i]);
    }
  }
  return result;
}

ReferenceResult reference_decode(const CinchDecodeStep& step) {
  if (step.cache_format != CINCH_CACHE_16BIT) return reference_decode(in_sixteen_bits(step).step);
  ReferenceResult result;
  const int width = out_width(step);
  for (int sequence = 0; sequence < step.batch; ++sequence) {
    for (int head = 0; head < step.n_heads; ++head) {
      std::vector<double> sums(
          static_cast<size_t>(step.kind == CINCH_DECODE_LATENT ? step.kv_lora_rank : step.head_dim));
      result.lse.push_back(attend(step, sequence, head, sums));
      if (step.v_head_dim == 0) {
        result.out.insert(result.out.end(), sums.begin(), sums.end());
        continue;
      }
      for (int row = 0; row < width; ++row) {
        double value = 0;
        const int64_t at = head * step.value_map_head_stride + row * step.value_map_row_stride;
        for (size_t i = 0; i < sums.size(); ++i)
          value += sums[i] * number(step, step.value_map, at + static_cast<int64_t>(i));
        if (step.value_bias != nullptr && step.lengths[sequence] > 0)
          value += number(step, step.value_bias, static_cast<int64_t>(head) * width + row);
        result.out.push_back(value);
      }
    }
  }
  return result;
}

}  // namespace cinch::decode
