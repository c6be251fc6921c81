// The case grid of the cache append.
#pragma once

#include "tests/attention/append_cases.h"

namespace cinch::decode {

inline AppendCase grouped_append(int head_dim, int rotary_dim, int n_heads, int n_kv_heads, int tokens,
                                 std::vector<int32_t> lengths) {
  AppendCase c;
  c.kind = CINCH_DECODE_GROUPED;
  c.neighbours = false;
  c.head_dim = head_dim;
  c.rotary_dim = rotary_dim;
  c.n_heads = n_heads;
  c.n_kv_heads = n_kv_heads;
  c.tokens = tokens;
  c.lengths = std::move(lengths);
  return c;
}
inline AppendCase latent_append(int rank, int rope, int tokens, std::vector<int32_t> lengths) {
  AppendCase c;
  c.rank = rank;
  c.rope = rope;
  c.tokens = tokens;
  c.lengths = std::move(lengths);
  return c;
}

/// Lengths after an append of `tokens`: at the edges of pages, and such that some or all of the tokens are not there.
inline std::vector<int32_t> edge_lengths(int tokens) {
  std::vector<int32_t> lengths = {0, 1, 63, 64, 65, 128, 191, tokens, tokens - 1, tokens + 63, tokens + 64};
  if (tokens > 2) lengths.push_back(tokens / 2);
  return lengths;
}

/// Of a large batch.
inline std::vector<int32_t> many_lengths() {
  std::vector<int32_t> lengths(300);
  for (size_t i = 0; i < lengths.size(); ++i) lengths[i] = static_cast<int32_t>(i * 37 % 200);
  return lengths;
}

inline std::vector<AppendCase> grouped_appends() {
  std::vector<AppendCase> cases;
  for (const int tokens : {1, 2, 63, 64, 65, 200}) {
    for (const int rotary : {48, 32, 20, 2, 0}) {
      if (tokens > 65 && rotary < 32) continue;
      AppendCase c = grouped_append(48, rotary, 9, 3, tokens, edge_lengths(tokens));
      const size_t i = cases.size();
      c.paged = i % 2 == 0;
      c.type = i % 3 == 1 ? CINCH_DECODE_FP16 : CINCH_DECODE_BF16;
      c.tokens_first = i % 4 >= 2;
      c.ragged = i % 5 == 3;
      c.in_place = i % 7 >= 5;
      c.neighbours = i % 6 == 5;
      cases.push_back(c);
    }
  }
  for (const int head_dim : {1, 6, 20, 30, 64, 72, 128, 256})
    cases.push_back(grouped_append(head_dim, head_dim / 2 * 2, 4, head_dim == 64 ? 1 : 2, 3, {0, 2, 65, 130}));
  cases.back().without_q = true;
  cases.push_back(grouped_append(32, 32, 3, 3, 1, many_lengths()));
  return cases;
}

inline std::vector<AppendCase> latent_appends(int format) {
  std::vector<AppendCase> cases;
  for (const int tokens : {1, 2, 63, 64, 65, 200}) {
    for (const int rope : {8, 24, 64, 128}) {
      AppendCase c = latent_append(rope == 64 ? 136 : 40, rope, tokens, edge_lengths(tokens));
      const size_t i = cases.size();
      if (tokens == 200) c.lengths = {200, 263, 64};
      c.format = format;
      // Scales of one token know nothing of pages, and the emulator is slow where lanes speak with each other.
      if (tokens > 2 && (format == CINCH_CACHE_INT8 || format == CINCH_CACHE_FP8)) c.lengths = {0, tokens + 63, 37};
      c.paged = format != CINCH_CACHE_16BIT || i % 2 == 0;
      c.type = i % 3 == 1 ? CINCH_DECODE_FP16 : CINCH_DECODE_BF16;
      c.key_scales = i % 4 >= 2;
      c.rope_per_kv_head = i % 5 == 4 && rope < 64;
      c.ragged = i % 5 == 3;
      c.in_place = i % 7 == 6;
      c.without_q = i % 7 == 5;
      cases.push_back(c);
    }
  }
  for (const int rank : {16, 72, 320, 512, 1024}) {
    AppendCase c = latent_append(rank, 64, 2, {65, 128, 3});
    c.format = format;
    c.key_scales = rank == 72;
    c.n_heads = c.n_kv_heads = 16;
    cases.push_back(c);
  }
  // Keys so large that scales and zeros are bf16; an fp16 cache that holds nothing but zeros of both signs; numbers so
  // small that a scale is a coarse subnormal, and codes must be kept below 128.
  cases.push_back(latent_append(40, 16, 65, {128, 65}));
  cases.back().format = format;
  cases.back().spread = 2e5f;
  cases.push_back(cases.back());
  cases.back().spread = 1e-12f;
  cases.back().type = CINCH_DECODE_FP16;
  cases.push_back(latent_append(40, 16, 1, {3}));
  cases.back().format = format;
  cases.back().spread = 1e-38f;
  cases.push_back(latent_append(16, 8, 1, many_lengths()));
  cases.back().format = format;
  if (format == CINCH_CACHE_16BIT) {
    cases.push_back(latent_append(7, 2, 3, {70, 1, 2}));
    cases.push_back(latent_append(33, 0, 3, {70, 1, 2}));
    cases.push_back(latent_append(40, 24, 3, {70, 1, 2}));
    cases.back().neighbours = false;
  }
  return cases;
}

/// Of every kernel something, small.
inline std::vector<AppendCase> tiny_appends() {
  std::vector<AppendCase> cases = {grouped_append(48, 20, 9, 3, 1, {0, 1, 65}),
                                   grouped_append(64, 64, 4, 2, 3, {2, 66})};
  for (int format = CINCH_CACHE_16BIT; format <= CINCH_CACHE_INT4; ++format) {
    for (const int type : {CINCH_DECODE_BF16, CINCH_DECODE_FP16}) {
      AppendCase c = latent_append(72, 24, type == CINCH_DECODE_BF16 ? 1 : 66, {0, 64, 128, 70, 9});
      c.type = type;
      c.format = format;
      c.key_scales = true;
      cases.push_back(c);
    }
  }
  return cases;
}

inline std::vector<AppendCase> all_appends() {
  std::vector<AppendCase> cases = grouped_appends();
  for (int format = CINCH_CACHE_16BIT; format <= CINCH_CACHE_INT4; ++format) {
    const std::vector<AppendCase> more = latent_appends(format);
    cases.insert(cases.end(), more.begin(), more.end());
  }
  return cases;
}

}  // namespace cinch::decode
