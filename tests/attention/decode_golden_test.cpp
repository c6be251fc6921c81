// The reference of the decode kernels against numpy (tests/golden/attention/make_golden.py), dense and paged, both
// types.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "attention/kernels/decode/reference.h"
#include "attention/kernels/warp/numbers.h"
#include "core/json.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

constexpr uint16_t kNan = 0x7fff;  // in both types
constexpr int kPage = CINCH_DECODE_PAGE;

// Numbers of the arrays in `input`.
enum Array : uint32_t { kQ, kKeys, kValues, kLatent, kRope, kKeyScales, kValueMap, kValueBias };

/// Element `i` of an array of the case, in 64ths: the hash of make_golden.py.
int input(uint32_t seed, Array array, size_t i) {
  uint32_t h = (static_cast<uint32_t>(i) + 1) * 0x9E3779B1u ^ (seed * 0x85EBCA77u + uint32_t{array} * 0xC2B2AE3Du);
  h = (h ^ (h >> 15)) * 0x2C1B3C6Du;
  h = (h ^ (h >> 12)) * 0x297A2D39u;
  return static_cast<int8_t>((h ^ (h >> 15)) >> 24);
}

/// A golden case laid out in memory as a kernel gets it.
class GoldenStep {
 public:
  GoldenStep(const JsonObject& golden, int32_t type, bool paged)
      : golden_(golden), seed_(static_cast<uint32_t>(golden.integer("seed"))), type_(type) {
    for (const int64_t length : golden.integers("lengths")) {
      lengths_.push_back(static_cast<int32_t>(length));
      longest_ = std::max(longest_, lengths_.back());
    }
    step_.kind = golden.string("kind") == "grouped" ? CINCH_DECODE_GROUPED : CINCH_DECODE_LATENT;
    step_.type = type;
    step_.batch = static_cast<int32_t>(lengths_.size());
    step_.n_heads = field("n_heads");
    step_.n_kv_heads = field("n_kv_heads");
    step_.window = field("window");
    step_.scale = static_cast<float>(golden.number("scale"));
    step_.softcap = static_cast<float>(golden.number("softcap"));
    step_.lengths = lengths_.data();
    if (paged) scatter_pages();
    if (step_.kind == CINCH_DECODE_GROUPED) {
      fill_grouped();
    } else {
      fill_latent();
    }
    const int width = decode::query_width(step_);
    q_ = array(kQ, step_.batch * step_.n_heads * width);
    step_.q = q_.data();
    step_.q_head_stride = width;
    step_.q_batch_stride = int64_t{step_.n_heads} * width;
  }
  GoldenStep(const GoldenStep&) = delete;

  const CinchDecodeStep& step() const { return step_; }

 private:
  int32_t field(const char* key) const { return static_cast<int32_t>(golden_.integer_or(key, 0)); }
  uint16_t bits(int in_64ths) const {
    const float value = static_cast<float>(in_64ths) / 64;
    return type_ == CINCH_DECODE_BF16 ? warp::Bf16::from_float(value) : warp::Fp16::from_float(value);
  }
  std::vector<uint16_t> array(Array which, int count) const {
    std::vector<uint16_t> values;
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) values.push_back(bits(input(seed_, which, i)));
    return values;
  }

  /// Pages of all sequences in an order that is not theirs, with one between that nobody uses.
  void scatter_pages() {
    const int per_sequence = (longest_ + kPage - 1) / kPage, count = step_.batch * per_sequence;
    for (int i = 0; i < count; ++i) table_.push_back((i * 7 + 3) % (count % 7 == 0 ? count + 1 : count));
    step_.block_table = table_.data();
    step_.block_table_stride = per_sequence;
  }

  /// Lays rows out as (sequences or pages, heads, tokens, width padded to 8), NaN wherever no visible token stands.
  CinchDecodeCache store(int heads, int width, const std::function<uint16_t(int, int, int, int)>& number,
                         std::vector<uint16_t>& memory) const {
    const int tokens = table_.empty() ? longest_ : kPage, pitch = (width + 15) / 8 * 8;
    const int pages = table_.empty() ? step_.batch : static_cast<int>(table_.size()) + 1;
    CinchDecodeCache cache{nullptr, int64_t{heads} * tokens * pitch, int64_t{tokens} * pitch, pitch};
    memory.assign(static_cast<size_t>(pages * cache.page_stride), kNan);
    for (int b = 0; b < step_.batch; ++b) {
      const int length = lengths_[static_cast<size_t>(b)];
      const int first = step_.window > 0 ? std::max(0, length - step_.window) : 0;
      for (int t = first; t < length; ++t) {
        const int64_t page = table_.empty() ? b : table_[static_cast<size_t>(b * step_.block_table_stride + t / kPage)];
        for (int head = 0; head < heads; ++head) {
          const int64_t at = page * cache.page_stride + head * cache.head_stride + t % tokens * cache.token_stride;
          for (int i = 0; i < width; ++i) memory[static_cast<size_t>(at + i)] = number(b, head, t, i);
        }
      }
    }
    cache.data = memory.data();
    return cache;
  }

  void fill_grouped() {
    step_.head_dim = field("head_dim");
    const auto from = [this](Array which) {
      return [this, which](int b, int head, int t, int i) {
        const int row = (b * step_.n_kv_heads + head) * longest_ + t;
        return bits(input(seed_, which, static_cast<size_t>(row * step_.head_dim + i)));
      };
    };
    step_.keys = store(step_.n_kv_heads, step_.head_dim, from(kKeys), keys_);
    step_.values = store(step_.n_kv_heads, step_.head_dim, from(kValues), values_);
  }

  void fill_latent() {
    step_.kv_lora_rank = field("kv_lora_rank");
    step_.qk_rope_head_dim = field("qk_rope_head_dim");
    step_.rope_per_kv_head = golden_.boolean_or("rope_per_kv_head", false) ? 1 : 0;
    step_.key_scales = golden_.boolean_or("key_scales", false) ? 1 : 0;
    const int rank = step_.kv_lora_rank;
    const int rope = step_.qk_rope_head_dim * (step_.rope_per_kv_head != 0 ? step_.n_kv_heads : 1);
    const auto number = [this, rank, rope](int b, int, int t, int i) {
      const int row = b * longest_ + t;
      if (i < rank) return bits(input(seed_, kLatent, static_cast<size_t>(row * rank + i)));
      if (i < rank + rope) return bits(input(seed_, kRope, static_cast<size_t>(row * rope + i - rank)));
      const auto scale = static_cast<size_t>(row * step_.n_kv_heads + i - rank - rope);
      return bits((input(seed_, kKeyScales, scale) & 63) + 32);
    };
    step_.keys = store(1, decode::row_width(step_), number, keys_);
    if (const int width = field("v_head_dim"); width > 0) {
      step_.v_head_dim = width;
      value_map_ = array(kValueMap, step_.n_heads * width * rank);
      step_.value_map = value_map_.data();
      step_.value_map_row_stride = rank;
      step_.value_map_head_stride = int64_t{width} * rank;
      value_bias_ = array(kValueBias, step_.n_heads * width);
      if (golden_.boolean_or("value_bias", false)) step_.value_bias = value_bias_.data();
    }
  }

  JsonObject golden_;
  uint32_t seed_;
  int32_t type_;
  int32_t longest_ = 0;
  std::vector<int32_t> lengths_, table_;
  std::vector<uint16_t> q_, keys_, values_, value_map_, value_bias_;
  CinchDecodeStep step_{};
};

TEST(DecodeGolden, ReferenceEqualsNumpy) {
  const auto cases = JsonObject::from_file(repo_file("tests/golden/attention/decode.json")).objects("cases");
  ASSERT_EQ(cases.size(), 9u);
  for (const JsonObject& golden : cases) {
    for (const int32_t type : {CINCH_DECODE_BF16, CINCH_DECODE_FP16}) {
      for (const bool paged : {false, true}) {
        SCOPED_TRACE(golden.string("name") + (type == CINCH_DECODE_BF16 ? ", bf16" : ", fp16") +
                     (paged ? ", paged" : ""));
        const GoldenStep made(golden, type, paged);
        const decode::ReferenceResult result = decode::reference_decode(made.step());
        const std::vector<double> expected = golden.numbers("out");
        ASSERT_EQ(result.out.size(), expected.size());
        for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(result.out[i], expected[i], 2e-11) << i;
        const Json& lse = golden.json().at("lse");
        ASSERT_EQ(result.lse.size(), lse.size());
        for (size_t i = 0; i < lse.size(); ++i) {
          if (lse[i].is_null()) {
            EXPECT_EQ(result.lse[i], -std::numeric_limits<double>::infinity()) << i;
          } else {
            EXPECT_NEAR(result.lse[i], lse[i].get<double>(), 2e-11) << i;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace cinch
