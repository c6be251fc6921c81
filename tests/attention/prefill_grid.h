// The case grid of the prefill kernels (docs/kernels.md, Correctness).
#pragma once

#include <utility>

#include "tests/attention/prefill_cases.h"

namespace cinch::prefill {

inline PrefillCase sized(int group, int n_kv_heads, int queries, int keys, int head_dim, int v_head_dim) {
  PrefillCase c;
  c.n_heads = group * n_kv_heads;
  c.n_kv_heads = n_kv_heads;
  c.queries = queries;
  c.keys = keys;
  c.head_dim = head_dim;
  c.v_head_dim = v_head_dim;
  return c;
}
/// Every second case heads first, every third fp16, so that a grid meets all pairs.
inline void vary(std::vector<PrefillCase>& cases) {
  for (size_t i = 0; i < cases.size(); ++i) {
    cases[i].tokens_first = i % 2 == 0;
    cases[i].type = i % 3 == 2 ? CINCH_PREFILL_FP16 : CINCH_PREFILL_BF16;
  }
}
inline void append(std::vector<PrefillCase>& to, const std::vector<PrefillCase>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

/// What a request can have besides sizes, one after the other and together.
inline std::vector<PrefillCase> features_of(const PrefillCase& plain) {
  std::vector<PrefillCase> cases(7, plain);
  cases[0].window = plain.queries / 3 + 1;
  cases[1].softcap = 2;
  cases[1].spread = 3;
  cases[2].documents = true;
  cases[2].batch = 2;
  cases[3].documents = true;
  cases[3].window = plain.queries / 4 + 1;
  cases[4].documents = true;
  cases[4].softcap = 5;
  cases[5].window = 1;
  cases[6].window = plain.queries / 2;
  cases[6].softcap = 20;
  cases[6].spread = 4;
  return cases;
}

/// Queries that stand before the keys, or whose window does not reach them, see none.
inline std::vector<PrefillCase> blind_cases(int head_dim) {
  std::vector<PrefillCase> cases(4, sized(3, 1, 50, 40, head_dim, head_dim));
  cases[0].first_query = -13;  // 13 queries see none
  cases[1].first_query = 30;   // the last ones see none in their window
  cases[1].window = 20;
  cases[2].first_query = -50;  // nobody sees any
  cases[3].first_query = 100;  // nor here
  cases[3].window = 30;
  return cases;
}

/// Small: for compute-sanitizer, and of every compiled kernel at least one.
inline std::vector<PrefillCase> tiny_grid() {
  std::vector<PrefillCase> cases;
  for (const int width : {40, 128, 136}) {
    for (int type = 0; type < 2; ++type) {
      cases.push_back(sized(3, 2, 30, 70, width, width));
      cases.back().type = type == 0 ? CINCH_PREFILL_BF16 : CINCH_PREFILL_FP16;
    }
  }
  append(cases, features_of(sized(2, 1, 70, 70, 64, 48)));
  append(cases, blind_cases(72));
  cases.push_back(sized(2, 1, 40, 40, 192, 128));
  return cases;
}

inline std::vector<PrefillCase> device_grid() {
  std::vector<PrefillCase> cases = tiny_grid();
  for (const int width : {8, 16, 32, 40, 48, 64, 72, 80, 96, 120, 128, 136, 160, 192, 200, 248, 256})
    for (const int group : {1, 4, 7}) cases.push_back(sized(group, 2, 200, 200, width, width));
  for (const int group : {1, 2, 3, 5, 6, 7, 8, 9, 12, 16, 28, 32}) cases.push_back(sized(group, 2, 130, 190, 128, 64));
  for (const int tokens : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300}) {
    cases.push_back(sized(1, 3, tokens, tokens, 64, 128));
    cases.push_back(sized(3, 1, tokens, 257, 96, 96));
    cases.push_back(sized(1, 1, tokens, tokens + 1, 256, 24));
  }
  vary(cases);
  for (const auto& [d, dv] : {std::pair(64, 64), std::pair(128, 128), std::pair(192, 128), std::pair(80, 256)}) {
    append(cases, features_of(sized(4, 2, 300, 300, d, dv)));
    append(cases, features_of(sized(5, 1, 130, 700, d, dv)));
    append(cases, blind_cases(d));
  }
  cases.push_back(sized(2, 2, 1000, 1000, 128, 128));
  cases.push_back(sized(1, 2, 700, 1500, 192, 128));
  cases.back().documents = true;
  return cases;
}

}  // namespace cinch::prefill
