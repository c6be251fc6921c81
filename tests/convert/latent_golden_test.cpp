// The latent solvers against an independent implementation (tests/golden/convert/make_golden.py).
#include <gtest/gtest.h>

#include <cstring>

#include "checkpoints/checkpoint_format.h"
#include "convert/solvers/latent_output_refit.h"
#include "convert/solvers/latent_query_refit.h"
#include "tests/convert/latent_case.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

constexpr double kTolerance = 1e-8;

class LatentGolden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    file_ = open_tensors(repo_file("tests/golden/convert/latent.safetensors"));
    const at::Tensor n = read("numbers");
    const auto integer = [&](int64_t i) { return static_cast<int64_t>(n[i].item<double>()); };
    AttentionSpec& spec = problem_.source;
    spec.n_heads = integer(0);
    spec.n_kv_heads = integer(1);
    spec.head_dim = spec.rope.rotary_dim = integer(2);
    spec.hidden_size = integer(3);
    rank_ = integer(4);
    rotary_dim_ = integer(5);
    spec.rope.theta = n[6].item<double>();
    spec.softcap = n[7].item<double>();
    spec.window = integer(8);
    spec.scale = n[9].item<double>();
    spec.qk_norm_eps = n[10].item<double>();
    GroupedQueryWeights& w = problem_.weights;
    w.q_proj = read("in.q_proj");
    w.k_proj = read("in.k_proj");
    w.v_proj = read("in.v_proj");
    w.o_proj = read("in.o_proj");
    spec.qkv_bias = has("in.q_bias");
    spec.qk_norm = has("in.q_norm");
    if (spec.qkv_bias) {
      w.q_bias = read("in.q_bias");
      w.k_bias = read("in.k_bias");
      w.v_bias = read("in.v_bias");
    }
    if (spec.qk_norm) {
      w.q_norm = read("in.q_norm");
      w.k_norm = read("in.k_norm");
    }
    problem_.target = spec;
    problem_.teacher = read("in.teacher");
    problem_.student = read("in.student");
    for (int64_t i = 0; i < problem_.teacher.size(0); ++i) problem_.windows.fit.push_back(i);
    problem_.attention_input = [](const at::Tensor& h) { return h; };
  }
  bool has(const std::string& name) const { return file_->find(GetParam() + "." + name) != nullptr; }
  at::Tensor read(const std::string& name) const {
    const TensorData data = file_->read(GetParam() + "." + name);
    at::Tensor result = at::empty(data.info.shape, at::kDouble);
    std::memcpy(result.mutable_data_ptr(), data.bytes.data(), data.bytes.size());
    return result;
  }
  void expect_equal(const at::Tensor& value, const std::string& name) const {
    const at::Tensor wanted = read("out." + name);
    ASSERT_EQ(value.sizes(), wanted.sizes()) << name;
    EXPECT_LT(largest_difference(value, wanted), kTolerance) << name;
  }
  /// What a head's queries meet in the cache, as maps on z and on the keys: (H, D, 2KD) and (H, D, K*D).
  void expect_query(const at::Tensor& query, const LatentBasis& basis, const RotaryMaps& rotary,
                    const std::string& latent, const std::string& turned) const {
    expect_equal(at::matmul(query.slice(1, 0, rank_).transpose(1, 2), basis.encode), latent);
    expect_equal(at::matmul(query.slice(1, rank_).transpose(1, 2), rotary.rotary_key), turned);
  }

  std::unique_ptr<TensorSource> file_;
  LayerProblem problem_;
  int64_t rank_ = 0, rotary_dim_ = 0;
};

TEST_P(LatentGolden, EveryStepAgrees) {
  const SourceHeads heads = source_heads(problem_);
  const HeadStream stream(problem_, heads);
  const LatentMoments moments = latent_moments(stream, heads);
  expect_equal(moments.query, "query");
  expect_equal(moments.lags, "lags");
  EXPECT_NEAR(moments.output_energy, read("out.energy").item<double>(), kTolerance * moments.output_energy);

  const RotarySurvey survey(heads, moments, plane_groups(heads.planes, false));
  const RotaryMaps rotary = survey.maps(choose_slots({&survey}, rotary_dim_));
  expect_equal(rotary.inv_freq, "inv_freq");
  const LatentBasis basis = latent_basis(latent_spectrum(heads, moments, rotary), rank_);
  LatentMaps maps = latent_maps(heads, rotary, basis, up_map_moments(stream, heads, rotary, basis));
  expect_query(maps.query, basis, rotary, "latent", "rotary");
  expect_equal(at::matmul(maps.value_up, basis.encode), "values");
  expect_equal(at::tensor({maps.kept_energy_k, maps.kept_energy_v}, at::kDouble), "kept");

  const LatentQueryProblem refit(stream, heads, maps, stream.tokens());
  maps.query = refit.solve(2000, 1.0);
  expect_query(maps.query, basis, rotary, "refit_latent", "refit_rotary");
  refit_latent_output(problem_, stream, heads, {.lambdas = {1e-2}, .bias = true, .follow_drift = false}, maps);
  expect_equal(maps.o, "o");
  expect_equal(maps.o_bias, "o_bias");
}

INSTANTIATE_TEST_SUITE_P(Layers, LatentGolden, testing::Values("gqa", "mha", "nine_heads"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace cinch
