// What merging heads must do exactly, in fp64: lose nothing where heads are copies of each other in any coordinates,
// and depend on nothing that does not change the model's function (gauge, order of heads).
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/rms_norm.h"
#include "convert/transform.h"

namespace cinch {
namespace {

constexpr double kExact = 1e-10;

struct Case {
  std::string name;
  int64_t heads = 8, kv_heads = 4, head_dim = 8, target = 2;
  bool bias = false, qk_norm = false, output_bias = false;
  double softcap = 0;
  int64_t window = 0;
  RopeSpec rope = {};
  bool sandwich = false;  // a norm between o_proj and the residual stream

  int64_t hidden() const { return std::max<int64_t>(24, head_dim + 16); }
  AttentionSpec spec() const {
    AttentionSpec spec;
    spec.hidden_size = hidden();
    spec.n_heads = heads;
    spec.n_kv_heads = kv_heads;
    spec.head_dim = head_dim;
    spec.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
    spec.qkv_bias = bias;
    spec.output_bias = output_bias;
    spec.qk_norm = qk_norm;
    spec.softcap = softcap;
    spec.window = window;
    spec.rope = rope;
    if (spec.rope.rotary_dim == 0) spec.rope.rotary_dim = head_dim;
    return spec;
  }
  int64_t rep() const { return heads / kv_heads; }
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

GroupedQueryWeights random_weights(const Case& c) {
  const auto random = [](std::vector<int64_t> shape) { return at::randn(shape, at::kDouble) * 0.4; };
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  GroupedQueryWeights w{.q_proj = random({q, c.hidden()}),
                        .k_proj = random({kv, c.hidden()}),
                        .v_proj = random({kv, c.hidden()}),
                        .o_proj = random({c.hidden(), q})};
  if (c.bias) {
    w.q_bias = random({q});
    w.k_bias = random({kv});
    w.v_bias = random({kv});
  }
  if (c.output_bias) w.o_bias = random({c.hidden()});
  if (c.qk_norm) {
    w.q_norm = 1 + random({c.head_dim});
    w.k_norm = 1 + random({c.head_dim});
  }
  return w;
}

/// Head h of rows (n*D, ..), a view.
at::Tensor head(const at::Tensor& rows, int64_t h, int64_t d) { return rows.slice(0, h * d, (h + 1) * d); }

/// KV head `to` becomes a copy of `from`; its queries and o_proj stay its own.
void copy_head(const Case& c, GroupedQueryWeights& w, int64_t from, int64_t to) {
  for (at::Tensor* rows : {&w.k_proj, &w.v_proj, &w.k_bias, &w.v_bias}) {
    if (rows->defined()) head(*rows, to, c.head_dim).copy_(head(*rows, from, c.head_dim));
  }
}

/// Another basis for one KV head: a complex number per rotary plane on its keys, any invertible map on its values, and
/// their inverses on its queries and o_proj columns. The function stays.
void change_gauge(const Case& c, GroupedQueryWeights& w, int64_t kv, bool unitary) {
  const int64_t d = c.head_dim, half = c.spec().rope.rotary_dim / 2;
  const at::Tensor angle = at::randn({half}, at::kDouble) * 2;
  const at::Tensor size = unitary ? at::ones({half}, at::kDouble) : at::exp(at::randn({half}, at::kDouble) * 0.3);
  at::Tensor k_map = at::eye(d, at::kDouble);
  for (int64_t f = 0; f < half; ++f) {
    const double re = (size[f] * angle[f].cos()).item<double>(), im = (size[f] * angle[f].sin()).item<double>();
    k_map[f][f] = re;
    k_map[f][f + half] = -im;
    k_map[f + half][f] = im;
    k_map[f + half][f + half] = re;
  }
  at::Tensor v_map = at::eye(d, at::kDouble) + 0.3 * at::randn({d, d}, at::kDouble);
  if (unitary) v_map = std::get<0>(at::linalg_qr(v_map));
  const at::Tensor q_map = at::linalg_inv(k_map).transpose(0, 1), o_map = at::linalg_inv(v_map);
  const auto apply = [&](at::Tensor& rows, int64_t h, const at::Tensor& map) {
    if (rows.defined()) head(rows, h, d).copy_(at::matmul(map, head(rows, h, d)));
  };
  apply(w.k_proj, kv, k_map);
  apply(w.k_bias, kv, k_map);
  apply(w.v_proj, kv, v_map);
  apply(w.v_bias, kv, v_map);
  for (int64_t h = kv * c.rep(); h < (kv + 1) * c.rep(); ++h) {
    apply(w.q_proj, h, q_map);
    apply(w.q_bias, h, q_map);
    at::Tensor columns = w.o_proj.slice(1, h * d, (h + 1) * d);
    columns.copy_(at::matmul(columns, o_map));
  }
}

/// KV heads in another order, their queries and o_proj columns with them.
GroupedQueryWeights permuted(const Case& c, const GroupedQueryWeights& w, const std::vector<int64_t>& order) {
  std::vector<int64_t> kv, q;
  for (const int64_t k : order) {
    for (int64_t i = 0; i < c.head_dim; ++i) kv.push_back(k * c.head_dim + i);
    for (int64_t i = 0; i < c.rep() * c.head_dim; ++i) q.push_back(k * c.rep() * c.head_dim + i);
  }
  const at::Tensor kv_index = at::tensor(kv, at::kLong), q_index = at::tensor(q, at::kLong);
  GroupedQueryWeights result = w;
  for (at::Tensor* rows : {&result.k_proj, &result.v_proj, &result.k_bias, &result.v_bias}) {
    if (rows->defined()) *rows = rows->index_select(0, kv_index);
  }
  for (at::Tensor* rows : {&result.q_proj, &result.q_bias}) {
    if (rows->defined()) *rows = rows->index_select(0, q_index);
  }
  result.o_proj = w.o_proj.index_select(1, q_index);
  return result;
}

class HeadMerging : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    at::manual_seed(11);
    stream_ = at::randn({8, 32, c().hidden()}, at::kDouble);
    post_norm_ = 1 + 0.3 * at::randn({c().hidden()}, at::kDouble);
  }
  const Case& c() const { return GetParam(); }

  LayerProblem problem(const GroupedQueryWeights& weights) const {
    LayerProblem p;
    p.source = p.target = c().spec();
    p.target.n_kv_heads = c().target;
    p.weights = weights;
    p.teacher = stream_;
    p.student = stream_.clone();
    p.windows = {.fit = {0, 1, 3, 4, 5, 6, 7}, .validation = {2}};
    p.attention_input = [](const at::Tensor& h) { return h; };
    if (c().sandwich) {
      p.attention_residual = [gain = post_norm_](const at::Tensor& y) { return rms_norm(y, gain, 1e-6); };
    }
    p.output_bias_allowed = c().output_bias;
    return p;
  }
  LayerSolution solve(const GroupedQueryWeights& weights, const std::string& method) const {
    ConversionRecipe recipe;
    recipe.method = method;
    recipe.n_kv_heads = c().target;
    recipe.calibration_window = stream_.size(1);
    const LayerProblem p = problem(weights);
    LayerSolution solution = transform(method).solve(p, recipe);
    solution.grouped_query().check(p.target);
    return solution;
  }
  at::Tensor run(const GroupedQueryWeights& weights, int64_t kv_heads) const {
    AttentionSpec spec = c().spec();
    spec.n_kv_heads = kv_heads;
    return GroupedQueryAttention(spec, weights).forward(stream_, 0, 0, nullptr);
  }
  /// Largest difference, relative to the output's largest number.
  double error(const GroupedQueryWeights& source, const GroupedQueryWeights& merged) const {
    const at::Tensor wanted = run(source, c().kv_heads);
    return ((run(merged, c().target) - wanted).abs().max() / wanted.abs().max()).item<double>();
  }
  /// Weights whose heads are copies, in groups of neighbours.
  GroupedQueryWeights with_copies() const {
    GroupedQueryWeights w = random_weights(c());
    const int64_t g = c().kv_heads / c().target;
    for (int64_t k = 0; k < c().kv_heads; ++k) {
      if (k % g != 0) copy_head(c(), w, k - k % g, k);
    }
    return w;
  }

  at::Tensor stream_, post_norm_;
};

TEST_P(HeadMerging, CopiesMergeWithoutLoss) {
  const GroupedQueryWeights w = with_copies();
  for (const Transform* method : transforms()) {
    if (method->makes() != TargetKind::gqa) continue;
    EXPECT_LT(error(w, solve(w, method->name()).grouped_query()), kExact) << method->name();
  }
}

TEST_P(HeadMerging, CopiesInOtherCoordinatesMergeWithoutLoss) {
  if (c().qk_norm) GTEST_SKIP() << "skipped: with QK-norm the coordinates of keys are not free";
  GroupedQueryWeights turned = with_copies(), scaled = with_copies();
  for (int64_t k = 0; k < c().kv_heads; ++k) {
    change_gauge(c(), turned, k, /*unitary=*/true);
    change_gauge(c(), scaled, k, /*unitary=*/false);
  }
  EXPECT_LT(error(turned, solve(turned, "procrustes").grouped_query()), kExact);
  EXPECT_LT(error(scaled, solve(scaled, "aligned").grouped_query()), kExact);
}

TEST_P(HeadMerging, ScatteredCopiesAreFound) {
  const int64_t g = c().kv_heads / c().target;
  std::vector<int64_t> order;  // 0, g, 2g, .., 1, g + 1, ..
  for (int64_t i = 0; i < g; ++i) {
    for (int64_t j = 0; j < c().target; ++j) order.push_back(j * g + i);
  }
  const GroupedQueryWeights w = permuted(c(), with_copies(), order);
  EXPECT_LT(error(w, solve(w, "aligned").grouped_query()), kExact);
}

TEST_P(HeadMerging, TheGaugeOfTheSourceDoesNotMatter) {
  if (c().qk_norm) GTEST_SKIP() << "skipped: with QK-norm the coordinates of keys are not free";
  const GroupedQueryWeights w = random_weights(c());
  GroupedQueryWeights other = w;
  for (at::Tensor* t :
       {&other.q_proj, &other.k_proj, &other.v_proj, &other.o_proj, &other.q_bias, &other.k_bias, &other.v_bias}) {
    if (t->defined()) *t = t->clone();
  }
  for (int64_t k = 0; k < c().kv_heads; ++k) change_gauge(c(), other, k, /*unitary=*/false);
  const LayerSolution first = solve(w, "aligned"), second = solve(other, "aligned");
  const at::Tensor a = run(first.grouped_query(), c().target), b = run(second.grouped_query(), c().target);
  EXPECT_LT(((a - b).abs().max() / a.abs().max()).item<double>(), kExact);
}

TEST_P(HeadMerging, TheOrderOfHeadsDoesNotMatter) {
  const GroupedQueryWeights w = random_weights(c());
  std::vector<int64_t> order;
  for (int64_t k = c().kv_heads - 1; k >= 0; --k) order.push_back(k);
  const GroupedQueryWeights other = permuted(c(), w, order);
  const LayerSolution first = solve(w, "aligned"), second = solve(other, "aligned");
  const at::Tensor a = run(first.grouped_query(), c().target), b = run(second.grouped_query(), c().target);
  EXPECT_LT(((a - b).abs().max() / a.abs().max()).item<double>(), kExact);
}

TEST_P(HeadMerging, HeadOrderNamesTheSourceOfEachQueryHead) {
  std::vector<int64_t> order = solve(random_weights(c()), "aligned").head_order;
  EXPECT_EQ(order.size(), static_cast<size_t>(c().heads));
  std::sort(order.begin(), order.end());
  for (int64_t h = 0; h < c().heads; ++h) EXPECT_EQ(order[h], h);
}

RopeSpec partial_rope(int64_t rotary_dim) {
  RopeSpec rope;
  rope.rotary_dim = rotary_dim;
  return rope;
}

RopeSpec yarn_rope() {
  RopeSpec rope;
  rope.type = "yarn";
  rope.factor = 4;
  rope.original_max_position_embeddings = 16;
  rope.max_position_embeddings = 64;
  return rope;
}

INSTANTIATE_TEST_SUITE_P(
    Attention, HeadMerging,
    testing::Values(Case{.name = "mha", .heads = 4, .kv_heads = 4, .target = 2},
                    Case{.name = "mha_to_mqa", .heads = 4, .kv_heads = 4, .target = 1}, Case{.name = "gqa"},
                    Case{.name = "gqa_to_mqa", .target = 1},
                    Case{.name = "nine_heads_of_three", .heads = 9, .kv_heads = 3, .head_dim = 6, .target = 1},
                    Case{.name = "head_dim_48", .heads = 4, .kv_heads = 2, .head_dim = 48, .target = 1},
                    Case{.name = "same_count", .target = 4}, Case{.name = "biases", .bias = true},
                    Case{.name = "output_bias", .bias = true, .output_bias = true}, Case{.name = "window", .window = 7},
                    Case{.name = "softcap", .softcap = 2.0}, Case{.name = "sandwich_norms", .sandwich = true},
                    Case{.name = "partial_rotary", .rope = partial_rope(4)}, Case{.name = "yarn", .rope = yarn_rope()},
                    Case{.name = "qk_norm", .qk_norm = true},
                    Case{.name = "qk_norm_bias", .bias = true, .qk_norm = true}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace cinch
