#include "convert/solvers/fisher.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "convert/solvers/conjugate_gradient.h"
#include "convert/solvers/linear_algebra.h"
#include "convert/solvers/softmax_metric.h"

namespace cinch {
namespace {

constexpr double kPreconditionerDamping = 1e-3;

/// Diagonal of a Kronecker preconditioner's row factor: every number of a rotary plane gets the plane's mean.
at::Tensor plane_means(const at::Tensor& power) {
  const auto halves = power.chunk(2, -1);
  const at::Tensor plane = (halves[0] + halves[1]) / 2;
  return at::cat({plane, plane}, -1);
}

at::Tensor safe_rows(const at::Tensor& power) {
  return (power + kPreconditionerDamping * power.mean(-1, /*keepdim=*/true)).clamp_min(1e-300);
}

/// One group's share of a MergedHeads.
struct Group {
  int64_t first_kv, n_kv, first_head, n_heads;
};

Group group_of(const MergedHeads& merged, int64_t j) {
  const int64_t g = merged.key.size(2), heads = merged.query.size(0) / merged.key.size(0);
  return {j * g, g, j * heads, heads};
}

at::Tensor kv_slice(const at::Tensor& x, const Group& group) {
  return x.slice(0, group.first_kv, group.first_kv + group.n_kv);
}
at::Tensor head_slice(const at::Tensor& x, const Group& group) {
  return x.slice(0, group.first_head, group.first_head + group.n_heads);
}

/// Source keys of a group side by side, (T, g*D).
at::Tensor stacked_keys(const FisherWindow& window, const Group& group) {
  return kv_slice(window.keys, group).transpose(0, 1).flatten(1, 2);
}

/// Errors of a group's logits, (n, M, T): queries (n, M, D) and shared keys (T, D), both rotated.
at::Tensor logits(const at::Tensor& queries, const at::Tensor& keys) {
  return at::matmul(queries.flatten(0, 1), keys.transpose(0, 1))
      .reshape({queries.size(0), queries.size(1), keys.size(0)});
}

at::TensorOptions options_of(const FisherSample& sample) { return sample.windows.at(0).keys.options(); }

/// A group's maps in the sample's dtype, on its device.
struct GroupMaps {
  Group group;
  at::Tensor key;    // (g*D, D) from stacked source keys to shared ones
  at::Tensor query;  // (n, D, D) from source queries to mapped ones
};

GroupMaps maps_of(const FisherSample& sample, const MergedHeads& merged, int64_t j) {
  const Group group = group_of(merged, j);
  const auto options = options_of(sample);
  return {group, merged.key[j].reshape({merged.key.size(1), -1}).to(options).transpose(0, 1),
          head_slice(merged.query, group).transpose(1, 2).to(options)};
}

at::Tensor shared_keys(const FisherSample& sample, const FisherWindow& window, const GroupMaps& maps) {
  return rotate(at::matmul(stacked_keys(window, maps.group), maps.key), sample.keys);
}

at::Tensor mapped_queries(const FisherSample& sample, const FisherWindow& window, const GroupMaps& maps) {
  return rotate(at::bmm(head_slice(window.queries, maps.group), maps.query), sample.queries);
}

/// Original minus shared logits of a group, (n, M, T).
at::Tensor logit_error(const FisherSample& sample, const FisherWindow& window, const GroupMaps& maps) {
  const Group& group = maps.group;
  const int64_t rep = group.n_heads / group.n_kv, m = window.queries.size(1), d = window.queries.size(2);
  const at::Tensor queries = head_slice(window.queries, group);
  const at::Tensor source_keys = rotate(kv_slice(window.keys, group), sample.keys);
  const at::Tensor source =
      at::bmm(rotate(queries, sample.queries).reshape({group.n_kv, rep * m, d}), source_keys.transpose(1, 2))
          .reshape({group.n_heads, m, -1});
  return source - logits(mapped_queries(sample, window, maps), shared_keys(sample, window, maps));
}

/// Slope of cap * tanh(l / cap) at the capped logits' arguments.
at::Tensor cap_slope(const HeadStream& stream, const SourceHeads& heads, const at::Tensor& q, const at::Tensor& k,
                     const at::Tensor& positions) {
  const int64_t rep = heads.rep();
  const at::Tensor rotated = rotate(q, stream.table()).index_select(1, positions);
  const at::Tensor scores = at::matmul(rotated, rotate(k, stream.table()).repeat_interleave(rep, 0).transpose(1, 2));
  return 1 - at::tanh(scores * (heads.spec.scale / heads.spec.softcap)).square();
}

/// Sum over the sampled queries of E_p |W_O v|^2 - |W_O E_p v|^2 per head, (H).
at::Tensor value_spread(const at::Tensor& p, const at::Tensor& values, const at::Tensor& metric) {
  const int64_t rep = p.size(0) / values.size(0);
  const at::Tensor v = values.repeat_interleave(rep, 0);  // (H, T, D)
  const at::Tensor power = (at::bmm(v, metric) * v).sum(-1, true);
  const at::Tensor mean = at::bmm(p, v);
  return at::bmm(p, power).sum({1, 2}) - (at::bmm(mean, metric) * mean).sum({1, 2});
}

}  // namespace

FisherSample fisher_sample(const HeadStream& stream, const SourceHeads& heads, int64_t windows, int64_t positions) {
  const int64_t t = stream.tokens();
  positions = std::min(positions, t);
  const at::Tensor at_positions =
      at::linspace(t / positions, t - 1, positions, at::kDouble).to(stream.options().device(), at::kLong);
  FisherSample sample;
  sample.keys = stream.table();
  sample.queries = {stream.table().cos.index_select(0, at_positions), stream.table().sin.index_select(0, at_positions)};
  const at::Tensor metric = at::bmm(heads.o.transpose(1, 2), heads.o).to(stream.options());
  at::Tensor spread_sum;
  for (const int64_t w : stream.some_fit(windows)) {
    const Projections x = stream.project(w);
    const at::Tensor p = stream.probabilities(x.q, x.k).index_select(1, at_positions);
    accumulate(spread_sum, value_spread(p, x.v, metric));
    at::Tensor weight = p, mean = p;
    if (heads.spec.softcap > 0) {
      const at::Tensor slope = cap_slope(stream, heads, x.q, x.k, at_positions);
      mean = p * slope;
      weight = mean * slope;
    }
    sample.windows.push_back(
        {.keys = x.k, .queries = x.q.index_select(1, at_positions), .weight = weight, .mean = mean});
  }
  const at::Tensor spread = fp64(spread_sum);
  const double average = spread.mean().item<double>();
  sample.head_weight = average > 0 ? spread.clamp_min(0) / average : at::ones_like(spread);
  return sample;
}

at::Tensor fisher_loss(const FisherSample& sample, const MergedHeads& merged) {
  at::Tensor loss = at::zeros({merged.query.size(0)}, at::kDouble);
  double queries = 0;
  for (const FisherWindow& window : sample.windows) {
    queries += static_cast<double>(window.queries.size(1));
    for (int64_t j = 0; j < merged.key.size(0); ++j) {
      const GroupMaps maps = maps_of(sample, merged, j);
      const Group& group = maps.group;
      const at::Tensor error = logit_error(sample, window, maps);
      const at::Tensor weighted =
          softmax_gradient_(error.clone(), head_slice(window.weight, group), head_slice(window.mean, group));
      head_slice(loss, group) += fp64((weighted * error).sum({1, 2}));
    }
  }
  return loss / queries;
}

namespace {

/// The quadratic problem of one group's shared key.
class KeyRefit {
 public:
  KeyRefit(const FisherSample& sample, const MergedHeads& merged, int64_t j)
      : sample_(sample), maps_(maps_of(sample, merged, j)), group_(maps_.group) {
    for (const FisherWindow& window : sample.windows) {
      queries_.push_back(mapped_queries(sample, window, maps_));
      count_ += static_cast<double>(window.queries.size(1));
    }
    head_weight_ = (head_slice(sample.head_weight, group_) / count_).to(options_of(sample).device());
  }

  /// Hessian times x (D, g*D).
  at::Tensor apply(const at::Tensor& x) const {
    const GroupMaps step{group_, x.transpose(0, 1).to(options_of(sample_)), {}};
    return sum(
        [&](size_t w, const FisherWindow& window) { return logits(queries_[w], shared_keys(sample_, window, step)); });
  }

  /// Minus the gradient at the current key.
  at::Tensor right_side() const {
    return sum([&](size_t, const FisherWindow& window) { return logit_error(sample_, window, maps_); });
  }

  /// Diagonal of the row factor of the Kronecker preconditioner (D): weighted power of each plane of the mapped
  /// queries.
  at::Tensor row_power() const {
    at::Tensor power;
    for (const at::Tensor& q : queries_)
      accumulate(power, (q.square().sum(1).to(at::kDouble) * head_weight_.unsqueeze(1)).sum(0));
    return plane_means(fp64(power));
  }

 private:
  /// Sum over windows of the gradient that logit errors (n, M, T) put on the key map.
  template <typename Errors>
  at::Tensor sum(const Errors& errors) const {
    const at::Tensor head_weight = head_weight_.to(options_of(sample_)).reshape({-1, 1, 1});
    at::Tensor total;
    for (size_t w = 0; w < sample_.windows.size(); ++w) {
      const FisherWindow& window = sample_.windows[w];
      const at::Tensor weighted =
          softmax_gradient_(errors(w, window), head_slice(window.weight, group_), head_slice(window.mean, group_));
      const at::Tensor queries = queries_[w] * head_weight;
      const at::Tensor on_keys = at::matmul(weighted.flatten(0, 1).transpose(0, 1), queries.flatten(0, 1));  // (T, D)
      accumulate(total, at::matmul(rotate(on_keys, sample_.keys, true).transpose(0, 1), stacked_keys(window, group_)));
    }
    return fp64(total);
  }

  const FisherSample& sample_;
  GroupMaps maps_;
  Group group_;
  std::vector<at::Tensor> queries_;  // (n, M, D) mapped and rotated, per window
  double count_ = 0;
  at::Tensor head_weight_;  // (n) of the mean over queries, fp64 on the sample's device
};

/// The quadratic problems of one group's query maps, one per head.
class QueryRefit {
 public:
  QueryRefit(const FisherSample& sample, const MergedHeads& merged, int64_t j)
      : sample_(sample), maps_(maps_of(sample, merged, j)), group_(maps_.group) {
    for (const FisherWindow& window : sample.windows) {
      keys_.push_back(shared_keys(sample, window, maps_));
      count_ += static_cast<double>(window.queries.size(1));
    }
  }

  /// Hessian times x (n, D, D).
  at::Tensor apply(const at::Tensor& x) const {
    const GroupMaps step{group_, {}, x.transpose(1, 2).to(options_of(sample_))};
    return sum(
        [&](size_t w, const FisherWindow& window) { return logits(mapped_queries(sample_, window, step), keys_[w]); });
  }

  /// Minus the gradient at the current maps.
  at::Tensor right_side() const {
    return sum([&](size_t, const FisherWindow& window) { return logit_error(sample_, window, maps_); });
  }

  /// Row factor of the preconditioner (n, D): p-centred power of the shared key's planes.
  at::Tensor row_power() const {
    at::Tensor power;
    for (size_t w = 0; w < keys_.size(); ++w) {
      const FisherWindow& window = sample_.windows[w];
      const at::Tensor weight = head_slice(window.weight, group_).sum(1);             // (n, T)
      const at::Tensor mean = at::matmul(head_slice(window.mean, group_), keys_[w]);  // (n, M, D)
      accumulate(power, (at::matmul(weight, keys_[w].square()) - mean.square().sum(1)).clamp_min(0));
    }
    return plane_means(fp64(power) / count_);
  }

  /// Column factor (n, D, D): second moment of the sampled queries.
  at::Tensor query_moment() const {
    at::Tensor moment;
    for (const FisherWindow& window : sample_.windows) {
      const at::Tensor queries = head_slice(window.queries, group_);
      accumulate(moment, at::bmm(queries.transpose(1, 2), queries));
    }
    return fp64(moment) / count_;
  }

 private:
  /// Sum over windows of the gradients that logit errors (n, M, T) put on the query maps.
  template <typename Errors>
  at::Tensor sum(const Errors& errors) const {
    at::Tensor total;
    for (size_t w = 0; w < sample_.windows.size(); ++w) {
      const FisherWindow& window = sample_.windows[w];
      const at::Tensor weighted =
          softmax_gradient_(errors(w, window), head_slice(window.weight, group_), head_slice(window.mean, group_));
      const at::Tensor on_queries = rotate(at::matmul(weighted, keys_[w]), sample_.queries, true);  // (n, M, D)
      accumulate(total, at::bmm(on_queries.transpose(1, 2), head_slice(window.queries, group_)));
    }
    return fp64(total) / count_;
  }

  const FisherSample& sample_;
  GroupMaps maps_;
  Group group_;
  std::vector<at::Tensor> keys_;  // (T, D) shared, rotated, per window
  double count_ = 0;
};

}  // namespace

void refit_queries(const FisherSample& sample, MergedHeads& merged, int steps, double damping) {
  std::vector<at::Tensor> changed;
  for (int64_t j = 0; j < merged.key.size(0); ++j) {
    const QueryRefit refit(sample, merged, j);
    const at::Tensor rows = safe_rows(refit.row_power()).unsqueeze(-1);
    const at::Tensor columns = damped(refit.query_moment(), kPreconditionerDamping);
    const at::Tensor step = batched_conjugate_gradient(
        [&](const at::Tensor& x) { return refit.apply(x) + damping * rows * at::bmm(x, columns); },
        [&](const at::Tensor& x) { return solve_symmetric(columns, x.transpose(1, 2)).transpose(1, 2) / rows; },
        refit.right_side(), steps);
    changed.push_back(head_slice(merged.query, group_of(merged, j)) + step);
  }
  merged.query = at::cat(changed);
}

void refit_keys(const FisherSample& sample, const at::Tensor& moment, MergedHeads& merged, int steps, double damping) {
  const int64_t d = merged.key.size(1);
  std::vector<at::Tensor> changed;
  for (int64_t j = 0; j < merged.key.size(0); ++j) {
    const Group group = group_of(merged, j);
    const KeyRefit refit(sample, merged, j);
    const at::Tensor rows = safe_rows(refit.row_power()).unsqueeze(1);
    const at::Tensor own = kv_slice(moment, group).slice(2, group.first_kv, group.first_kv + group.n_kv);
    const at::Tensor columns = damped(own.reshape({group.n_kv * d, group.n_kv * d}), kPreconditionerDamping);
    const at::Tensor step = conjugate_gradient(
        [&](const at::Tensor& x) { return refit.apply(x) + damping * rows * at::matmul(x, columns); },
        [&](const at::Tensor& x) { return solve_symmetric(columns, x.transpose(0, 1)).transpose(0, 1) / rows; },
        refit.right_side(), steps);
    changed.push_back(merged.key[j] + step.reshape_as(merged.key[j]));
  }
  merged.key = at::stack(changed);
}

}  // namespace cinch
