// The reference of the prefill kernels against numpy (tests/golden/attention/make_prefill_golden.py), in both types.
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "attention/kernels/prefill/reference.h"
#include "attention/kernels/warp/numbers.h"
#include "core/json.h"
#include "tests/support/assets.h"

namespace cinch::prefill {
namespace {

// Numbers of the arrays in `input`.
enum Array : uint32_t { kQ, kK, kV, kDOut };

/// Element `i` of an array of the case, in 64ths: the hash of make_golden.py.
int input(uint32_t seed, Array array, size_t i) {
  uint32_t h = (static_cast<uint32_t>(i) + 1) * 0x9E3779B1u ^ (seed * 0x85EBCA77u + uint32_t{array} * 0xC2B2AE3Du);
  h = (h ^ (h >> 15)) * 0x2C1B3C6Du;
  h = (h ^ (h >> 12)) * 0x297A2D39u;
  return static_cast<int8_t>((h ^ (h >> 15)) >> 24);
}

/// A golden case laid out in memory as a kernel gets it: (B, heads, tokens, columns), contiguous.
class GoldenWork {
 public:
  GoldenWork(const JsonObject& golden, int32_t type) : golden_(golden) {
    const auto field = [&golden](const char* key) { return static_cast<int32_t>(golden.integer(key)); };
    work_.type = type;
    work_.batch = field("batch");
    work_.n_heads = field("n_heads");
    work_.n_kv_heads = field("n_kv_heads");
    work_.queries = field("queries");
    work_.keys = field("keys");
    work_.head_dim = field("head_dim");
    work_.v_head_dim = field("v_head_dim");
    work_.first_query = field("first_query");
    work_.window = field("window");
    work_.scale = static_cast<float>(golden.number("scale"));
    work_.softcap = static_cast<float>(golden.number("softcap"));
    work_.q = fill(q_, kQ, work_.n_heads, work_.queries, work_.head_dim);
    work_.k = fill(k_, kK, work_.n_kv_heads, work_.keys, work_.head_dim);
    work_.v = fill(v_, kV, work_.n_kv_heads, work_.keys, work_.v_head_dim);
    work_.d_out = fill(d_out_, kDOut, work_.n_heads, work_.queries, work_.v_head_dim);
    for (const Json& sequence : golden.json().at("first_keys"))
      for (const Json& first : sequence) first_keys_.push_back(first.get<int32_t>());
    work_.first_keys = first_keys_.empty() ? nullptr : first_keys_.data();
    work_.first_keys_stride = work_.queries;
  }
  GoldenWork(const GoldenWork&) = delete;

  const CinchPrefill& work() const { return work_; }

 private:
  CinchPrefillArray fill(std::vector<uint16_t>& to, Array which, int64_t heads, int64_t tokens, int64_t columns) const {
    const auto seed = static_cast<uint32_t>(golden_.integer("seed"));
    to.resize(static_cast<size_t>(work_.batch * heads * tokens * columns));
    for (size_t i = 0; i < to.size(); ++i) {
      const float value = static_cast<float>(input(seed, which, i)) / 64;
      to[i] = work_.type == CINCH_PREFILL_BF16 ? warp::Bf16::from_float(value) : warp::Fp16::from_float(value);
    }
    return {to.data(), heads * tokens * columns, tokens * columns, columns};
  }

  JsonObject golden_;
  std::vector<uint16_t> q_, k_, v_, d_out_;
  std::vector<int32_t> first_keys_;
  CinchPrefill work_{};
};

void expect_near(const std::vector<double>& found, const std::vector<double>& wanted, const char* what) {
  ASSERT_EQ(found.size(), wanted.size()) << what;
  for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], wanted[i], 2e-11) << what << " " << i;
}

TEST(PrefillGolden, ReferenceEqualsNumpy) {
  const auto cases = JsonObject::from_file(repo_file("tests/golden/attention/prefill.json")).objects("cases");
  ASSERT_EQ(cases.size(), 5u);
  size_t blind = 0;
  for (const JsonObject& golden : cases) {
    for (const int32_t type : {CINCH_PREFILL_BF16, CINCH_PREFILL_FP16}) {
      SCOPED_TRACE(golden.string("name") + (type == CINCH_PREFILL_BF16 ? ", bf16" : ", fp16"));
      const GoldenWork made(golden, type);
      const ReferenceForward forward = reference_forward(made.work());
      const ReferenceGradients backward = reference_backward(made.work());
      expect_near(forward.out, golden.numbers("out"), "out");
      expect_near(backward.d_q, golden.numbers("d_q"), "d_q");
      expect_near(backward.d_k, golden.numbers("d_k"), "d_k");
      expect_near(backward.d_v, golden.numbers("d_v"), "d_v");
      const Json& lse = golden.json().at("lse");
      ASSERT_EQ(forward.lse.size(), lse.size());
      for (size_t i = 0; i < lse.size(); ++i) {
        if (lse[i].is_null()) {
          EXPECT_EQ(forward.lse[i], -std::numeric_limits<double>::infinity()) << i;
          ++blind;
        } else {
          EXPECT_NEAR(forward.lse[i], lse[i].get<double>(), 2e-11) << i;
        }
      }
    }
  }
  EXPECT_EQ(blind, 8u);  // 2 queries of 2 heads, in 2 types
}

}  // namespace
}  // namespace cinch::prefill
