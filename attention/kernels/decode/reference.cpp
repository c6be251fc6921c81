#include "attention/kernels/decode/reference.h"

#include <cmath>
#include <cstddef>
#include <limits>

#include "attention/kernels/decode/half_types.h"

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

ReferenceResult reference_decode(const CinchDecodeStep& step) {
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
