// What converting to a latent must do exactly, in fp64: lose nothing where nothing is cut, never lose more with a
// larger cache, and depend on nothing that does not change the model's function.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>

#include "convert/solvers/joint_pca.h"
#include "convert/solvers/latent_output_refit.h"
#include "convert/solvers/latent_query_refit.h"
#include "convert/solvers/latent_weights.h"
#include "core/errors.h"
#include "tests/convert/latent_case.h"

namespace cinch {
namespace {

constexpr double kExact = 1e-9;

class LatentSolvers : public testing::TestWithParam<LatentCase> {
 protected:
  void SetUp() override {
    at::manual_seed(11);
    teacher_ = at::randn({5, 24, c().hidden()}, at::kDouble);
    teacher_.select(1, 0).mul_(5);  // a first token that stands out
    weights_ = c().random_weights();
  }
  const LatentCase& c() const { return GetParam(); }
  int64_t rest(int64_t rotary_dim) const { return 2 * c().all_keys() - rotary_dim; }

  at::Tensor teacher_;
  GroupedQueryWeights weights_;
};

TEST_P(LatentSolvers, NothingIsLostAtFullSize) {
  const LatentLayer layer(c(), weights_, teacher_);
  const LatentMaps maps = layer.fit(rest(c().all_keys()), c().all_keys());
  EXPECT_EQ(maps.rank() + maps.rotary_dim(), 2 * c().all_keys());
  EXPECT_LT(largest_difference(layer.converted(maps), layer.original()), kExact);
}

TEST_P(LatentSolvers, NothingIsLostAtFullSizeByPrincipalComponentsAlone) {
  const LatentLayer layer(c(), weights_, teacher_);
  const at::Tensor gram = activation_gram(layer.moments);
  const RotaryMaps rotary = folded_rotary_maps(layer.heads, gram, c().all_keys(), 1);
  const LatentBasis basis = joint_pca(layer.heads, gram, rotary, rest(c().all_keys()), /*balanced=*/true);
  EXPECT_LT(largest_difference(layer.converted(latent_maps(layer.heads, rotary, basis)), layer.original()), kExact);
}

TEST_P(LatentSolvers, RefitsLeaveAnExactFitAlone) {
  LatentLayer layer(c(), weights_, teacher_);
  LatentMaps maps = layer.fit(rest(c().all_keys()), c().all_keys());
  maps.query = LatentQueryProblem(layer.stream, layer.heads, maps, 8).solve(15, 1.0);
  refit_latent_output(layer.problem, layer.stream, layer.heads, {}, maps);
  EXPECT_LT(largest_difference(layer.converted(maps), layer.original()), kExact);
}

TEST_P(LatentSolvers, ErrorFallsWithRankAndRotaryDim) {
  const LatentLayer layer(c(), weights_, teacher_);
  double last = 1e9;
  for (const int64_t part : {4, 2, 1}) {
    const double error = layer.error(layer.fit(rest(8) / part, 8));
    EXPECT_LE(error, last) << part;
    last = error;
  }
  last = 1e9;
  for (const int64_t rotary_dim : {int64_t{0}, c().all_keys() / 4 * 2, c().all_keys()}) {
    const double error = layer.error(layer.fit(rest(rotary_dim), rotary_dim));
    EXPECT_LE(error, last + 1e-15) << rotary_dim;
    last = error;
  }
}

TEST_P(LatentSolvers, LeastSquaresLossFallsWithEveryNumberOfTheLatent) {
  // Of keys and values, as their own norms count it, up to what does not depend on the maps. Up-maps of the basis are
  // among those that least squares chooses from.
  const LatentLayer layer(c(), weights_, teacher_);
  const RotaryMaps rotary = layer.rotary(8);
  const auto loss = [](const at::Tensor& w, const at::Tensor& gram, const at::Tensor& cross) {
    return ((at::bmm(w, gram) - 2 * cross) * w).sum({1, 2});
  };
  const auto key_up = [](const LatentMaps& maps) { return maps.query.slice(1, 0, maps.rank()).transpose(1, 2); };
  const auto at_most = [](const at::Tensor& a, const at::Tensor& b) {
    return (a <= b + 1e-12 * b.abs()).all().item<bool>();
  };
  at::Tensor last_key = at::zeros({c().heads}, at::kDouble), last_value = last_key;
  double last_kept = 0;
  for (int64_t rank = 3; rank < rest(8); rank += 3) {
    const LatentBasis basis = latent_basis(latent_spectrum(layer.heads, layer.moments, rotary), rank);
    const UpMapMoments m = up_map_moments(layer.stream, layer.heads, rotary, basis);
    const LatentMaps plain = latent_maps(layer.heads, rotary, basis), fit = latent_maps(layer.heads, rotary, basis, m);
    const at::Tensor key = loss(key_up(fit), m.key_gram, m.key_cross);
    const at::Tensor value = loss(fit.value_up, m.mean_gram, m.mean_cross);
    EXPECT_TRUE(at_most(key, last_key)) << rank;
    EXPECT_TRUE(at_most(value, last_value)) << rank;
    EXPECT_TRUE(at_most(key, loss(key_up(plain), m.key_gram, m.key_cross))) << rank;
    EXPECT_TRUE(at_most(value, loss(plain.value_up, m.mean_gram, m.mean_cross))) << rank;
    EXPECT_GT(fit.kept_energy_k + fit.kept_energy_v, last_kept) << rank;
    last_key = key;
    last_value = value;
    last_kept = fit.kept_energy_k + fit.kept_energy_v;
  }
}

TEST_P(LatentSolvers, TheGaugeOfTheSourceDoesNotMatter) {
  if (c().qk_norm) GTEST_SKIP() << "skipped: with QK-norm the coordinates of keys are not free";
  GroupedQueryWeights turned = weights_;
  for (at::Tensor* t :
       {&turned.q_proj, &turned.k_proj, &turned.v_proj, &turned.o_proj, &turned.q_bias, &turned.k_bias, &turned.v_bias})
    if (t->defined()) *t = t->clone();
  const int64_t d = c().head_dim, rep = c().heads / c().kv_heads;
  const HeadPlanes planes = head_planes(c().spec(), 24);
  for (int64_t kv = 0; kv < c().kv_heads; ++kv) {
    // A phase per plane on keys and queries, a rotation on values.
    const at::Tensor phase = at::randn({planes.planes}, at::kDouble);
    at::Tensor key_map = at::empty({d, d}, at::kDouble);
    key_map.index_put_({planes.order.unsqueeze(1), planes.order}, plane_map(at::complex(phase.cos(), phase.sin())));
    const at::Tensor value_map = std::get<0>(at::linalg_qr(at::randn({d, d}, at::kDouble)));
    const auto map_rows = [&](at::Tensor& rows, int64_t head, const at::Tensor& map) {
      if (rows.defined())
        rows.slice(0, head * d, (head + 1) * d).copy_(at::matmul(map, rows.slice(0, head * d, (head + 1) * d)));
    };
    map_rows(turned.k_proj, kv, key_map);
    map_rows(turned.k_bias, kv, key_map);
    map_rows(turned.v_proj, kv, value_map);
    map_rows(turned.v_bias, kv, value_map);
    for (int64_t h = kv * rep; h < (kv + 1) * rep; ++h) {
      map_rows(turned.q_proj, h, key_map);
      map_rows(turned.q_bias, h, key_map);
      const at::Tensor columns = turned.o_proj.slice(1, h * d, (h + 1) * d);
      columns.copy_(at::matmul(columns, value_map.transpose(0, 1)));
    }
  }
  const LatentLayer one(c(), weights_, teacher_), other(c(), turned, teacher_);
  EXPECT_LT(largest_difference(other.original(), one.original()), kExact);
  EXPECT_LT(largest_difference(other.converted(other.fit(11, 8)), one.converted(one.fit(11, 8))), 1e-8);
}

TEST_P(LatentSolvers, TheQueryRefitsLossIsTheWeightedVarianceOfTheLogitError) {
  const LatentLayer layer(c(), weights_, teacher_);
  const LatentMaps maps = layer.fit(11, 8);
  const LatentQueryProblem refit(layer.stream, layer.heads, maps, 7);
  LatentMaps other = maps;
  other.query = maps.query + 0.1 * at::randn_like(maps.query);
  for (const LatentMaps& at_maps : {maps, other}) {
    at::Tensor expected = at::zeros({c().heads}, at::kDouble);
    const LatentForward forward(layer.stream, layer.heads, maps);
    const RotationTable pairs = pair_table(maps.inv_freq, 24, at::kDouble);
    for (int64_t w = 0; w < 5; ++w) {
      const Projections x = layer.stream.project(w);
      const at::Tensor f = forward.features(layer.stream.input(teacher_[w]));
      for (int64_t h = 0; h < c().heads; ++h) {
        const int64_t kv = h / layer.heads.rep();
        const at::Tensor own =
            at::matmul(rotate(x.q[h], layer.stream.table()), rotate(x.k[kv], layer.stream.table()).t());
        at::Tensor latent = at::matmul(rotate_pairs(at::matmul(x.q[h], at_maps.query[h].t()), pairs), f.t());
        if (x.k_scale.defined()) latent = latent * x.k_scale[kv].t();
        at::Tensor error = own - latent;
        if (c().softcap > 0) error = error * (1 - at::tanh(own * layer.heads.spec.scale / c().softcap).square());
        const at::Tensor p = layer.stream.probabilities(x.q, x.k)[h];
        const at::Tensor variance = (p * (error - (p * error).sum(1, true)).square()).sum(1);
        expected[h] += variance.index_select(0, refit.positions()[w]).sum() / 35;
      }
    }
    EXPECT_LT(largest_difference(refit.loss(at_maps.query), expected), kExact);
  }
}

TEST_P(LatentSolvers, TheQueryRefitReachesTheBottomOfItsQuadratic) {
  const LatentLayer layer(c(), weights_, teacher_);
  const LatentMaps maps = layer.fit(11, 8);
  const LatentQueryProblem refit(layer.stream, layer.heads, maps, 24);
  const double damping = 0.1;
  const auto total = [&](const at::Tensor& query) {
    return (refit.loss(query) + damping * refit.distance(query)).sum().item<double>();
  };
  const at::Tensor few = refit.solve(3, damping), many = refit.solve(500, damping);
  EXPECT_LT(total(few), total(maps.query));
  EXPECT_LE(total(many), total(few));
  EXPECT_LT(refit.loss(many).sum().item<double>(), refit.loss(maps.query).sum().item<double>());
  for (int i = 0; i < 5; ++i) EXPECT_GT(total(many + 1e-3 * at::randn_like(many)), total(many));
}

TEST_P(LatentSolvers, TheOutputRefitLowersTheError) {
  const LatentLayer layer(c(), weights_, teacher_);
  for (const bool bias : {false, true}) {
    LatentMaps maps = layer.fit(11, 8);
    const double before = layer.error(maps);
    const LatentOutputRefit refit = refit_latent_output(layer.problem, layer.stream, layer.heads,
                                                        {.lambdas = {1e-4}, .bias = bias, .follow_drift = false}, maps);
    const double after = layer.error(maps);
    EXPECT_LT(after, before);
    EXPECT_GE(refit.lambda, 0);
    EXPECT_EQ(maps.o_bias.defined(), bias || c().output_bias);
  }
}

TEST_P(LatentSolvers, TheModuleOfTheWeightsComputesWhatTheMapsDo) {
  const LatentLayer layer(c(), weights_, teacher_);
  LatentMaps maps = layer.fit(11, 8);
  for (const bool bias : {false, true}) {
    if (bias) refit_latent_output(layer.problem, layer.stream, layer.heads, {}, maps);
    const LatentLayerWeights made = latent_weights(weights_, layer.heads, maps);
    EXPECT_EQ(made.spec.kv_elements(), 19 + (c().qk_norm ? c().kv_heads : 0));
    for (const LatentForm form : {LatentForm::absorbed, LatentForm::unabsorbed}) {
      const at::Tensor y = LatentAttention(made.spec, made.weights, form).forward(teacher_, 0, 0, nullptr);
      EXPECT_LT(largest_difference(y, layer.converted(maps)), kExact);
    }
  }
}

TEST_P(LatentSolvers, ComplexComponentsKeepAtLeastTheEnergyOfRealOnes) {
  LatentLayer layer(c(), weights_, teacher_);
  // With equal weights of all queries both bases order by key energy alone.
  layer.moments.query = at::eye(c().head_dim, at::kDouble).expand({c().heads, c().head_dim, c().head_dim}).clone();
  layer.moments.lags = at::ones_like(layer.moments.lags);
  const RotarySurvey survey = layer.survey(true);
  const int64_t rotated = layer.heads.planes.rotated;
  std::vector<RotarySlot> slots;
  for (int64_t f = 0; f < rotated; ++f) slots.push_back({f, layer.heads.planes.frequency[f].item<double>()});
  const at::Tensor complex_rows = survey.maps(slots).rotary_key;
  const at::Tensor joint = layer.moments.joint, keys = joint.slice(0, 0, c().all_keys()).slice(1, 0, c().all_keys());
  const at::Tensor real_rows = folded_rotary_maps(layer.heads, joint, 2 * layer.heads.planes.planes, 1).rotary_key;
  for (int64_t f = 0; f < rotated; ++f) {
    const auto energy = [&](const at::Tensor& rows) {
      const at::Tensor pair = rows.slice(0, 2 * f, 2 * f + 2);
      return (at::matmul(at::matmul(pair, keys), pair.transpose(0, 1)).trace() / pair.square().sum()).item<double>();
    };
    EXPECT_GE(energy(complex_rows), energy(real_rows) * (1 - 1e-12)) << f;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Attention, LatentSolvers,
    testing::Values(LatentCase{.name = "gqa"}, LatentCase{.name = "mha", .heads = 3, .kv_heads = 3, .head_dim = 10},
                    LatentCase{.name = "mqa", .heads = 3, .kv_heads = 1},
                    LatentCase{.name = "nine_heads_of_three", .heads = 9, .kv_heads = 3, .head_dim = 6, .theta = 1e4},
                    LatentCase{.name = "head_dim_48", .heads = 2, .kv_heads = 1, .head_dim = 48},
                    LatentCase{.name = "biases", .bias = true, .output_bias = true},
                    LatentCase{.name = "window", .window = 7}, LatentCase{.name = "softcap", .softcap = 2.0},
                    LatentCase{.name = "partial_rotary", .rotary_dim = 8},
                    LatentCase{.name = "qk_norm", .qk_norm = true},
                    LatentCase{.name = "qk_norm_bias_softcap", .bias = true, .qk_norm = true, .softcap = 3.0}),
    [](const auto& test) { return test.param.name; });

class SharedSlots : public testing::Test {
 protected:
  SharedSlots() {
    at::manual_seed(5);
    for (std::unique_ptr<LatentLayer>& layer : layers_)
      layer =
          std::make_unique<LatentLayer>(case_, case_.random_weights(), at::randn({3, 20, case_.hidden()}, at::kDouble));
  }
  const LatentCase case_{.name = "gqa"};
  std::array<std::unique_ptr<LatentLayer>, 2> layers_;
};

TEST_F(SharedSlots, ALayerSharesItsOwnSlotsWithItself) {
  const RotarySurvey survey = layers_[0]->survey(false);
  const std::vector<RotarySlot> own = choose_slots({&survey}, 12), twice = choose_slots({&survey, &survey}, 12);
  ASSERT_EQ(own.size(), 6u);
  ASSERT_EQ(twice.size(), 6u);
  for (size_t i = 0; i < own.size(); ++i) {
    EXPECT_EQ(own[i].group, twice[i].group);
    EXPECT_EQ(own[i].frequency, twice[i].frequency);
    EXPECT_LE(own[i].frequency, own[i > 0 ? i - 1 : 0].frequency);
  }
}

TEST_F(SharedSlots, LayersHaveMapsOfTheirOwnForOneTable) {
  const RotarySurvey first = layers_[0]->survey(false), second = layers_[1]->survey(false);
  const std::vector<RotarySlot> slots = choose_slots({&first, &second}, 12);
  const RotaryMaps a = first.maps(slots), b = second.maps(slots);
  EXPECT_TRUE(at::equal(a.inv_freq, b.inv_freq));
  EXPECT_FALSE(at::allclose(a.rotary_key, b.rotary_key));
  EXPECT_EQ(a.rest_key.size(0), case_.all_keys() - 12);
}

TEST_F(SharedSlots, OneTableOfEveryComponentLosesNothingInAnyLayer) {
  const RotarySurvey first = layers_[0]->survey(true), second = layers_[1]->survey(true);
  const std::vector<RotarySlot> slots = choose_slots({&first, &second}, case_.all_keys());
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LatentLayer& layer = *layers_[i];
    const RotaryMaps rotary = (i == 0 ? first : second).maps(slots);
    const LatentBasis basis = latent_basis(latent_spectrum(layer.heads, layer.moments, rotary), case_.all_keys());
    const LatentMaps maps =
        latent_maps(layer.heads, rotary, basis, up_map_moments(layer.stream, layer.heads, rotary, basis));
    EXPECT_LT(largest_difference(layer.converted(maps), layer.original()), kExact);
  }
}

TEST_F(SharedSlots, ImpossibleSizesAreRefused) {
  const RotarySurvey survey = layers_[0]->survey(false);
  EXPECT_THROW(choose_slots({&survey}, 3), UsageError);
  EXPECT_THROW(choose_slots({&survey}, -2), UsageError);
  EXPECT_THROW(choose_slots({&survey}, case_.all_keys() + 2), UsageError);
  const RotaryMaps rotary = survey.maps(choose_slots({&survey}, 8));
  EXPECT_THROW(latent_basis(latent_spectrum(layers_[0]->heads, layers_[0]->moments, rotary), 0), UsageError);
  EXPECT_THROW(latent_basis(latent_spectrum(layers_[0]->heads, layers_[0]->moments, rotary), 2 * case_.all_keys() - 7),
               UsageError);
  EXPECT_THROW(folded_rotary_maps(layers_[0]->heads, layers_[0]->moments.joint, 6, 4), UsageError);
}

TEST(LatentMoments, LagsOfABlockOfQueriesCountEveryWeightOnce) {
  at::manual_seed(2);
  const at::Tensor all = at::rand({9, 9}, at::kDouble).tril();
  for (const int64_t first : {0, 1, 5, 8}) {
    const at::Tensor sums = lag_sums(all.slice(0, first));
    ASSERT_EQ(sums.size(0), 9);
    for (int64_t lag = 0; lag < 9; ++lag) {
      double expected = 0;
      for (int64_t t = std::max(first, lag); t < 9; ++t) expected += all[t][t - lag].item<double>();
      EXPECT_NEAR(sums[lag].item<double>(), expected, 1e-14) << first << " " << lag;
    }
  }
}

TEST(LatentMoments, WindowsOfSeveralBlocksAgreeWithTheDefinition) {
  at::manual_seed(3);
  const LatentCase c{.name = "", .heads = 2, .kv_heads = 1, .head_dim = 4};
  const int64_t t = 300;
  const LatentLayer layer(c, c.random_weights(), at::randn({1, t, c.hidden()}, at::kDouble));
  const Projections x = layer.stream.project(0);
  const at::Tensor p = layer.stream.probabilities(x.q, x.k);
  for (int64_t h = 0; h < 2; ++h) {
    const at::Tensor away = x.v[0].unsqueeze(0) - at::matmul(p[h], x.v[0]).unsqueeze(1);  // (T, T, D)
    const at::Tensor w = at::matmul(away, layer.heads.o[h].t()).square().sum(2) * p[h].square();
    const at::Tensor query = at::matmul((x.q[h] * w.sum(1, true)).t(), x.q[h]) / t;
    EXPECT_LT(largest_difference(layer.moments.query[h], query), kExact);
    for (const int64_t lag : {0, 1, 99, 280})
      EXPECT_NEAR(layer.moments.lags[h][lag].item<double>(), w.slice(1, 1).diagonal(-1 - lag).sum().item<double>() / t,
                  1e-12)
          << lag;
  }
}

TEST_F(SharedSlots, MomentsAreTheSameEveryTime) {
  const LatentMoments again = latent_moments(layers_[0]->stream, layers_[0]->heads);
  EXPECT_TRUE(at::equal(again.joint, layers_[0]->moments.joint));
  EXPECT_TRUE(at::equal(again.query, layers_[0]->moments.query));
  EXPECT_TRUE(at::equal(again.lags, layers_[0]->moments.lags));
}

}  // namespace
}  // namespace cinch
