// What tests of decode sessions share: tokens, runs over given tokens, and comparisons.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "model/decode_session.h"

namespace cinch {

inline std::vector<int64_t> random_ids(int64_t count, uint64_t seed, int64_t vocabulary = 96) {
  at::manual_seed(seed);
  const at::Tensor ids = at::randint(vocabulary, {count}, at::kLong);
  return {ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + count};
}

/// Logits after the prompt, the first tokens of `ids`, and after every one of the others, (steps + 1, V).
inline at::Tensor run_session(DecodeSession& session, const std::vector<int64_t>& ids, int64_t prompt) {
  std::vector<at::Tensor> logits = {session.prefill({{ids.begin(), ids.begin() + prompt}}).clone()};
  for (size_t i = static_cast<size_t>(prompt); i < ids.size(); ++i)
    logits.push_back(session.step(at::tensor({ids[i]}, at::kLong)).clone());
  return at::cat(logits);
}

/// The same of the model in fp64, without a cache.
inline at::Tensor exact_logits(const std::shared_ptr<ModelSource>& source, const std::vector<int64_t>& ids,
                               int64_t prompt) {
  const at::Tensor all = DecoderModel(source, at::kDouble)
                             .forward(at::tensor(ids).unsqueeze(0), nullptr, static_cast<int64_t>(ids.size()));
  return all[0].narrow(0, prompt - 1, static_cast<int64_t>(ids.size()) - prompt + 1);
}

/// Frobenius norm of the difference over that of the exact numbers.
inline double distance(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor exact = b.to(at::kDouble);
  return ((a.to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

/// The largest relative difference of any one token's rows; `b` may hold older tokens too.
inline double worst_token(const CachedRows& a, const CachedRows& b) {
  double worst = 0;
  const auto compare = [&](const at::Tensor& x, const at::Tensor& y) {
    const at::Tensor expected = y.narrow(2, a.first - b.first, x.size(2)).to(at::kDouble);
    const at::Tensor difference = (x.to(at::kDouble) - expected).norm(2, {1, 3});
    worst = std::max(worst, (difference / expected.norm(2, {1, 3})).max().item<double>());
  };
  compare(a.k, b.k);
  if (a.v.defined()) compare(a.v, b.v);
  return worst;
}

/// The same bits for the same tokens; `b` may hold older ones too.
inline void expect_same_rows(const CachedRows& a, const CachedRows& b) {
  ASSERT_GE(a.first, b.first);
  const auto same = [&](const at::Tensor& x, const at::Tensor& y) {
    const at::Tensor newer = y.narrow(2, a.first - b.first, y.size(2) - (a.first - b.first));
    EXPECT_EQ(x.sizes(), newer.sizes());
    EXPECT_TRUE(at::equal(x, newer));
  };
  same(a.k, b.k);
  if (a.v.defined()) same(a.v, b.v);
}

}  // namespace cinch
