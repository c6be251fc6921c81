// The refits in the metric of the softmax lower what they claim to lower.
#include "convert/solvers/fisher.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "convert/solvers/moments.h"

namespace cinch {
namespace {

class FisherTest : public testing::Test {
 protected:
  FisherTest() {
    at::manual_seed(3);
    const auto random = [](std::vector<int64_t> shape) { return at::randn(shape, at::kDouble) * 0.4; };
    AttentionSpec& spec = problem_.source;
    spec.hidden_size = 24;
    spec.n_heads = 4;
    spec.n_kv_heads = 2;
    spec.head_dim = 8;
    spec.scale = 0.5;
    spec.rope.rotary_dim = 8;
    problem_.target = spec;
    problem_.target.n_kv_heads = 1;
    problem_.weights = {
        .q_proj = random({32, 24}), .k_proj = random({16, 24}), .v_proj = random({16, 24}), .o_proj = random({24, 32})};
    problem_.teacher = problem_.student = at::randn({8, 32, 24}, at::kDouble);
    problem_.windows.fit = {0, 1, 2, 3, 4, 5, 6, 7};
    problem_.attention_input = [](const at::Tensor& h) { return h; };
    heads_ = source_heads(problem_);
    const HeadStream stream(problem_, heads_);
    key_moment_ = head_moments(stream).key;
    sample_ = fisher_sample(stream, heads_, 8, 16);
    merged_.key = at::randn({1, 8, 2, 8}, at::kDouble) * 0.3;
    merged_.query = at::randn({4, 8, 8}, at::kDouble) * 0.3;
  }
  double loss(const MergedHeads& merged) const {
    return (fisher_loss(sample_, merged) * sample_.head_weight).sum().item<double>();
  }

  LayerProblem problem_;
  SourceHeads heads_;
  at::Tensor key_moment_;
  FisherSample sample_;
  MergedHeads merged_;
};

TEST_F(FisherTest, TheLossIsThePWeightedVarianceOfTheLogitError) {
  // Once more for one window and head, from the definition.
  const RotationTable table = rotation_table(heads_.planes, 0, 32, at::kDouble);
  double expected = 0;
  for (const FisherWindow& window : sample_.windows) {
    const at::Tensor shared = at::matmul(window.keys.transpose(0, 1).flatten(1, 2), merged_.key[0].flatten(1, 2).t());
    const at::Tensor q = at::matmul(window.queries[3], merged_.query[3].t());
    const at::Tensor own = at::matmul(rotate(window.queries[3], sample_.queries), rotate(window.keys[1], table).t());
    const at::Tensor error = own - at::matmul(rotate(q, sample_.queries), rotate(shared, table).t());
    const at::Tensor p = window.weight[3];
    const at::Tensor mean = (p * error).sum(1, true);
    expected += (p * (error - mean).square()).sum().item<double>() / (8 * 16);
  }
  EXPECT_NEAR(fisher_loss(sample_, merged_)[3].item<double>(), expected, 1e-10 * expected);
}

TEST_F(FisherTest, KeyStepsReachTheBottomOfTheirQuadratic) {
  const double before = loss(merged_);
  MergedHeads some = merged_, many = merged_;
  refit_keys(sample_, key_moment_, some, 8, 1e-6);
  refit_keys(sample_, key_moment_, many, 400, 1e-6);
  EXPECT_LT(loss(some), 0.9 * before);
  EXPECT_LE(loss(many), loss(some));
  // At the bottom, no small change of the key helps.
  for (int i = 0; i < 5; ++i) {
    MergedHeads moved = many;
    moved.key = many.key + 1e-3 * at::randn_like(many.key);
    EXPECT_GT(loss(moved), loss(many));
  }
  EXPECT_LT(loss(some), 1.2 * loss(many)) << before;
}

TEST_F(FisherTest, QueryStepsReachTheBottomOfTheirQuadratics) {
  MergedHeads refitted = merged_;
  refit_queries(sample_, refitted, 400, 1e-6);
  EXPECT_LT(loss(refitted), loss(merged_));
  for (int i = 0; i < 5; ++i) {
    MergedHeads moved = refitted;
    moved.query = refitted.query + 1e-3 * at::randn_like(refitted.query);
    EXPECT_GT(loss(moved), loss(refitted));
  }
}

TEST_F(FisherTest, AlternationGoesOnFalling) {
  MergedHeads merged = merged_;
  refit_queries(sample_, merged, 8, 1e-2);
  double last = loss(merged);
  for (int round = 0; round < 3; ++round) {
    refit_keys(sample_, key_moment_, merged, 8, 1e-2);
    const double after_keys = loss(merged);
    refit_queries(sample_, merged, 8, 1e-2);
    EXPECT_LT(after_keys, last) << round;
    EXPECT_LT(loss(merged), after_keys) << round;
    last = loss(merged);
  }
}

}  // namespace
}  // namespace cinch
