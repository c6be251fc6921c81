// The case grid of the decode kernels (docs/kernels.md, Correctness).
#pragma once

#include "tests/attention/decode_cases.h"

namespace cinch::decode {

inline DecodeCase latent_case(int rank, int rope, int n_heads, std::vector<int32_t> lengths) {
  DecodeCase c;
  c.rank = rank;
  c.rope = rope;
  c.n_heads = n_heads;
  c.lengths = std::move(lengths);
  return c;
}
inline DecodeCase grouped_case(int head_dim, int group, int n_kv_heads, std::vector<int32_t> lengths) {
  DecodeCase c;
  c.kind = CINCH_DECODE_GROUPED;
  c.head_dim = head_dim;
  c.n_heads = group * n_kv_heads;
  c.n_kv_heads = n_kv_heads;
  c.lengths = std::move(lengths);
  return c;
}
/// Every second case dense, every third fp16, so that a grid meets all pairs.
inline void vary(std::vector<DecodeCase>& cases) {
  for (size_t i = 0; i < cases.size(); ++i) {
    cases[i].paged = i % 2 == 0;
    cases[i].type = i % 3 == 2 ? CINCH_DECODE_FP16 : CINCH_DECODE_BF16;
    cases[i].tokens_first = cases[i].kind == CINCH_DECODE_GROUPED && i % 4 >= 2;
  }
}

/// Features that a latent can have, one after the other and together.
inline std::vector<DecodeCase> latent_features(int rank, int rope, int n_heads, const std::vector<int32_t>& lengths) {
  const DecodeCase plain = latent_case(rank, rope, n_heads, lengths);
  std::vector<DecodeCase> cases(7, plain);
  cases[0].window = 37;
  cases[1].softcap = 3;
  cases[2].key_scales = true;
  cases[2].n_kv_heads = n_heads % 4 == 0 ? 4 : 3;
  cases[3].rope_per_kv_head = true;
  cases[3].n_kv_heads = n_heads % 4 == 0 ? 4 : 3;
  cases[3].rope = 8;
  cases[4].v_head_dim = 48;
  cases[5].v_head_dim = 72;
  cases[5].value_bias = true;
  cases[6] = cases[3];
  cases[6].key_scales = true;
  cases[6].window = 70;
  cases[6].softcap = 20;
  cases[6].v_head_dim = 40;
  cases[6].value_bias = true;
  cases[6].spread = 4;
  return cases;
}

inline void append(std::vector<DecodeCase>& to, const std::vector<DecodeCase>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

constexpr int kPackedFormats[] = {CINCH_CACHE_INT8, CINCH_CACHE_FP8, CINCH_CACHE_INT4};

/// Each case in all formats below 16 bits, in turns of the types.
inline std::vector<DecodeCase> packed(const std::vector<DecodeCase>& cases) {
  std::vector<DecodeCase> result;
  for (const DecodeCase& c : cases) {
    for (const int format : kPackedFormats) {
      result.push_back(c);
      result.back().cache_format = format;
      result.back().paged = true;
      result.back().type = result.size() % 2 == 0 ? CINCH_DECODE_FP16 : CINCH_DECODE_BF16;
    }
  }
  return result;
}
/// Channels that fp16 scales and zeros cannot hold.
inline DecodeCase huge_case(float huge) {
  DecodeCase c = latent_case(136, 24, 9, {200, 64, 3});
  c.cache_format = CINCH_CACHE_INT4;
  c.huge = huge;
  c.spread = 1e-3F;
  return c;
}

/// Small: for compute-sanitizer, and of every compiled kernel at least one.
inline std::vector<DecodeCase> tiny_grid() {
  std::vector<DecodeCase> cases;
  for (const int rank : {24, 120, 136, 264}) {
    for (const int n_heads : {9, 20, 40}) cases.push_back(latent_case(rank, 16, n_heads, {70, 0, 1, 130}));
  }
  append(cases, latent_features(72, 24, 12, {90, 0, 3}));
  for (const int group : {1, 5, 20}) cases.push_back(grouped_case(72, group, 2, {33, 0, 140}));
  cases.push_back(grouped_case(256, 3, 1, {100}));
  vary(cases);
  std::vector<DecodeCase> latents = latent_features(72, 24, 12, {90, 0, 3, 64});
  for (const int rank : {24, 136, 264})
    for (const int n_heads : {9, 20}) latents.push_back(latent_case(rank, 16, n_heads, {70, 0, 1, 130}));
  append(cases, packed(latents));
  return cases;
}

inline std::vector<DecodeCase> device_grid() {
  const std::vector<int32_t> mixed = {1, 0, 17, 64, 65, 200, 333, 1000, 5, 0, 640, 63};
  std::vector<DecodeCase> cases = tiny_grid();
  // Edges of the compiled buckets of value columns, and beyond one thread block's columns.
  for (const int bucket : {64, 128, 256, 512}) {
    for (const int rank : {bucket - 8, bucket, bucket + 8})
      for (const int n_heads : {16, 17, 33}) cases.push_back(latent_case(rank, 32, n_heads, mixed));
  }
  for (const int rank : {16, 96, 192, 320, 384, 448, 640, 768, 1024}) {
    for (const int rope : {8, 64, 128}) cases.push_back(latent_case(rank, rope, 28, mixed));
  }
  for (const int n_heads : {1, 3, 9, 63, 64, 100, 126, 128}) {
    cases.push_back(latent_case(512, 64, n_heads, {300, 20, 0, 4096}));
    cases.push_back(latent_case(96, 16, n_heads, mixed));
  }
  for (const int group : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 28, 32, 40}) {
    const int head_dim = group % 2 == 0 ? 128 : 64;
    cases.push_back(grouped_case(head_dim, group, group > 16 ? 2 : 3, mixed));
  }
  for (const int head_dim : {32, 40, 48, 56, 72, 80, 96, 120, 128, 136, 160, 192, 248, 256})
    for (const int group : {4, 9, 20}) cases.push_back(grouped_case(head_dim, group, 2, mixed));
  vary(cases);
  for (const int rank : {64, 136, 320, 512}) {
    const std::vector<DecodeCase> features = latent_features(rank, 64, rank == 136 ? 9 : 32, mixed);
    append(cases, features);
    append(cases, packed(features));
  }
  std::vector<DecodeCase> latents;
  for (const int rank : {16, 40, 72, 104, 128, 256, 328, 384, 512, 640, 1024}) {
    for (const int n_heads : {1, 16, 28, 64, 128})
      latents.push_back(latent_case(rank, rank % 3 == 0 ? 8 : rank % 3 == 1 ? 64 : 128, n_heads, mixed));
  }
  append(cases, packed(latents));
  for (const float huge : {1.0F, 1e4F, 1e6F}) cases.push_back(huge_case(huge));
  // Many sequences, and one long one.
  std::vector<int32_t> many(300);
  for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<int32_t>(i * 37 % 150);
  cases.push_back(latent_case(128, 32, 16, many));
  cases.push_back(grouped_case(128, 4, 2, many));
  cases.push_back(latent_case(512, 64, 16, {20000}));
  cases.back().v_head_dim = 128;
  cases.push_back(grouped_case(128, 4, 8, {9000}));
  cases.back().window = 4096;
  cases.push_back(grouped_case(64, 7, 4, {3000, 10}));
  cases.back().softcap = 30;
  cases.back().spread = 8;
  return cases;
}

}  // namespace cinch::decode
