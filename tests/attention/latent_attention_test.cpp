#include "attention/latent_attention.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "attention/grouped_query_attention.h"
#include "core/errors.h"

namespace cinch {
namespace {

at::Tensor random(std::vector<int64_t> shape) { return at::randn(shape, at::kDouble) * 0.3; }

double difference(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return (a - b).abs().max().item<double>();
}

/// 9 heads of 3, head size 48, a rank that is no power of two.
AttentionSpec spec_of(int64_t rotary = 24) {
  AttentionSpec spec;
  spec.kind = AttentionKind::latent;
  spec.hidden_size = 50;
  spec.n_heads = 9;
  spec.n_kv_heads = 3;
  spec.head_dim = 48;
  spec.scale = 0.21;
  spec.kv_lora_rank = 40;
  spec.qk_nope_head_dim = 29;
  spec.qk_rope_head_dim = rotary;
  spec.v_head_dim = 17;
  for (int64_t slot = 0; slot < rotary / 2; ++slot) {
    spec.rope_inv_freq.push_back(std::pow(30.0, -static_cast<double>(slot) / 12.0));
  }
  return spec;
}

LatentWeights weights_of(const AttentionSpec& spec) {
  at::manual_seed(5);
  const int64_t e = spec.hidden_size, r = spec.kv_lora_rank, dr = spec.qk_rope_head_dim;
  const int64_t q = spec.n_heads * (spec.qk_nope_head_dim + dr), key = spec.n_kv_heads * spec.head_dim;
  LatentWeights w;
  w.q_proj = random({q, e});
  w.kv_a_proj = random({r + dr, e});
  w.kv_b_proj = random({spec.n_heads * (spec.qk_nope_head_dim + spec.v_head_dim), r});
  w.o_proj = random({e, spec.n_heads * spec.v_head_dim});
  if (spec.key_scale_tail) w.k_norm_proj = random({key, e});
  if (spec.qkv_bias) {
    w.q_bias = random({q});
    w.kv_a_bias = random({r + dr});
    if (spec.key_scale_tail) w.k_norm_bias = random({key});
  }
  if (spec.output_bias) w.o_bias = random({e});
  return w;
}

/// y = W x + b for one token, x (E).
at::Tensor affine(const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& x) {
  const at::Tensor y = at::mv(weight, x);
  return bias.defined() ? y + bias : y;
}

/// Each pair (2s, 2s + 1) of x (Dr) turned by position * frequency, one by one.
at::Tensor turned(const at::Tensor& x, const std::vector<double>& inv_freq, double position) {
  at::Tensor result = x.clone();
  for (size_t slot = 0; slot < inv_freq.size(); ++slot) {
    const auto re = static_cast<int64_t>(2 * slot), im = re + 1;
    const double c = std::cos(position * inv_freq[slot]), s = std::sin(position * inv_freq[slot]);
    result[re] = x[re] * c - x[im] * s;
    result[im] = x[re] * s + x[im] * c;
  }
  return result;
}

double inverse_rms(const at::Tensor& x, double eps) { return 1.0 / std::sqrt(x.square().mean().item<double>() + eps); }

/// One sequence, x (T, E) -> (T, E): every score and every sum by its own line, nothing shared between heads or tokens.
at::Tensor by_hand(const AttentionSpec& spec, const LatentWeights& w, const at::Tensor& x) {
  const int64_t dn = spec.qk_nope_head_dim, dr = spec.qk_rope_head_dim, r = spec.kv_lora_rank, dv = spec.v_head_dim;
  const int64_t tokens = x.size(0);
  at::Tensor out = at::zeros({tokens, spec.n_heads * dv}, at::kDouble);
  for (int64_t h = 0; h < spec.n_heads; ++h) {
    const at::Tensor up = w.kv_b_proj.narrow(0, h * (dn + dv), dn + dv);
    for (int64_t t = 0; t < tokens; ++t) {
      at::Tensor q = affine(w.q_proj, w.q_bias, x[t]).narrow(0, h * (dn + dr), dn + dr);
      if (spec.qk_norm) q = q * inverse_rms(q.narrow(0, 0, dn), spec.qk_norm_eps);
      const at::Tensor q_turned = turned(q.narrow(0, dn, dr), spec.rope_inv_freq, static_cast<double>(t));
      double total = 0;
      at::Tensor sum = at::zeros({dv}, at::kDouble);
      for (int64_t s = 0; s <= t; ++s) {
        if (spec.window > 0 && t - s >= spec.window) continue;
        const at::Tensor kv = affine(w.kv_a_proj, w.kv_a_bias, x[s]);
        const at::Tensor latent = kv.narrow(0, 0, r);
        const at::Tensor k_turned = turned(kv.narrow(0, r, dr), spec.rope_inv_freq, static_cast<double>(s));
        double score = q.narrow(0, 0, dn).dot(at::mv(up.narrow(0, 0, dn), latent)).item<double>() +
                       q_turned.dot(k_turned).item<double>();
        if (spec.key_scale_tail) {
          const at::Tensor key = affine(w.k_norm_proj, w.k_norm_bias, x[s]);
          const int64_t kv_head = h / (spec.n_heads / spec.n_kv_heads);
          score *= inverse_rms(key.narrow(0, kv_head * spec.head_dim, spec.head_dim), spec.qk_norm_eps);
        }
        score *= spec.scale;
        if (spec.softcap > 0) score = spec.softcap * std::tanh(score / spec.softcap);
        total += std::exp(score);
        sum += std::exp(score) * at::mv(up.narrow(0, dn, dv), latent);
      }
      out[t].narrow(0, h * dv, dv).copy_(sum / total);
    }
  }
  const at::Tensor y = at::matmul(out, w.o_proj.t());
  return w.o_bias.defined() ? y + w.o_bias : y;
}

struct Case {
  const char* name;
  AttentionSpec spec;
};

AttentionSpec with_qk_norm(AttentionSpec spec) {
  spec.qk_norm = spec.key_scale_tail = true;
  spec.qk_norm_eps = 1e-3;  // large enough to be seen
  spec.qk_nope_head_dim = spec.head_dim;
  return spec;
}

std::vector<Case> cases() {
  std::vector<Case> list = {{"plain", spec_of()}, {"no rotary part", spec_of(0)}, {"repeated frequencies", spec_of(6)}};
  list.back().spec.rope_inv_freq = {0.7, 0.0, 0.7};
  AttentionSpec spec = spec_of();
  spec.qk_nope_head_dim = 0;
  list.push_back({"rotary part only", spec});
  spec = spec_of();
  spec.window = 4;
  list.push_back({"window", spec});
  spec.softcap = 1.5;
  list.push_back({"window and soft cap", spec});
  spec = spec_of();
  spec.softcap = 2.5;
  list.push_back({"soft cap", spec});
  spec = spec_of();
  spec.v_head_dim = 70;  // wider than the keys
  spec.qkv_bias = spec.output_bias = true;
  list.push_back({"biases and wide values", spec});
  spec = with_qk_norm(spec_of());
  list.push_back({"QK-norm", spec});
  spec.qkv_bias = true;
  spec.window = 3;
  spec.softcap = 4.0;
  list.push_back({"QK-norm with everything", spec});
  return list;
}

TEST(LatentAttention, BothFormsEqualTheFormula) {
  for (const auto& [name, spec] : cases()) {
    const LatentWeights weights = weights_of(spec);
    const at::Tensor x = random({2, 8, spec.hidden_size}) * 3;
    std::vector<at::Tensor> rows;
    for (int64_t b = 0; b < x.size(0); ++b) rows.push_back(by_hand(spec, weights, x[b]));
    const at::Tensor expected = at::stack(rows);
    for (const LatentForm form : {LatentForm::unabsorbed, LatentForm::absorbed, LatentForm::cheapest}) {
      const at::Tensor found = LatentAttention(spec, weights, form).forward(x, 0, 0, nullptr);
      EXPECT_LT(difference(found, expected), 1e-10) << name << ", form " << static_cast<int>(form);
    }
  }
}

TEST(LatentAttention, CacheInChunksEqualsOneCall) {
  for (const auto& [name, spec] : cases()) {
    for (const LatentForm form : {LatentForm::unabsorbed, LatentForm::absorbed, LatentForm::cheapest}) {
      const LatentAttention attention(spec, weights_of(spec), form);
      const at::Tensor x = random({2, 40, spec.hidden_size}) * 3;
      const at::Tensor whole = attention.forward(x, 0, 0, nullptr);
      KvCache cache;
      std::vector<at::Tensor> parts;
      int64_t first = 0;
      for (const int64_t count : {7, 1, 1, 13, 1, 17}) {
        parts.push_back(attention.forward(x.narrow(1, first, count), first, 40, &cache));
        first += count;
      }
      EXPECT_LT(difference(at::cat(parts, 1), whole), 1e-10) << name << ", form " << static_cast<int>(form);
    }
  }
}

/// Attention of given entries by the formula: latent (B, S, R), rotated key (B, S, Dr), key scales (B, S, K) -> (B, T,
/// H*Dv).
at::Tensor attended(const AttentionSpec& spec, const LatentWeights& w, const LatentAttention::Heads& heads,
                    const at::Tensor& q_turned, const at::Tensor& latent, const at::Tensor& k_turned) {
  const int64_t dn = spec.qk_nope_head_dim, dv = spec.v_head_dim, tokens = latent.size(1);
  const at::Tensor future = at::ones({tokens, tokens}, at::kBool).triu(1);
  std::vector<at::Tensor> outputs;
  for (int64_t h = 0; h < spec.n_heads; ++h) {
    const at::Tensor up = w.kv_b_proj.narrow(0, h * (dn + dv), dn + dv);
    const at::Tensor key = at::cat({at::matmul(latent, up.narrow(0, 0, dn).t()), k_turned}, -1);
    const at::Tensor query = at::cat({heads.q_nope.select(1, h), q_turned.select(1, h)}, -1);
    at::Tensor scores = at::matmul(query, key.transpose(1, 2)) * spec.scale;  // (B, T, S)
    if (spec.key_scale_tail) scores = scores * heads.key_scale.select(2, h / spec.group_size()).unsqueeze(1);
    const at::Tensor weights = at::softmax(scores.masked_fill(future, -INFINITY), -1);
    outputs.push_back(at::matmul(weights, at::matmul(latent, up.narrow(0, dn, dv).t())));
  }
  return at::cat(outputs, -1);
}

TEST(LatentAttention, SeesWhatTheCacheRounds) {
  for (const AttentionSpec& spec : {spec_of(), with_qk_norm(spec_of())}) {
    const LatentWeights weights = weights_of(spec);
    const at::Tensor x = random({2, 131, spec.hidden_size});
    for (const LatentForm form : {LatentForm::unabsorbed, LatentForm::absorbed}) {
      const LatentAttention attention(spec, weights, form);
      const LatentAttention::Heads heads = attention.project(x);
      const RotaryTable table = SlotRope(spec.rope_inv_freq).table(0, 131, at::kDouble, at::kCPU);
      const at::Tensor exact = attention.head_outputs(x, 0, 0, nullptr);
      KvCache plain;
      EXPECT_LT(difference(attention.head_outputs(x, 0, 0, &plain), exact), 1e-12);
      double before = 0;
      for (const int bits : {8, 4, 2}) {
        const CachePrecision precision{.bits = bits};
        const auto rounded = [&](const at::Tensor& part) {
          return rounded_per_channel(part.unsqueeze(1), precision).squeeze(1);
        };
        KvCache cache(precision);
        const at::Tensor found = attention.head_outputs(x, 0, 0, &cache);
        const at::Tensor expected = attended(spec, weights, heads, SlotRope::apply(heads.q_rope, table),
                                             rounded(heads.latent), rounded(SlotRope::apply(heads.k_rope, table)));
        EXPECT_LT(difference(found, expected), 1e-11) << bits << " bits";
        const double error = ((found - exact).norm() / exact.norm()).item<double>();
        EXPECT_GT(error, 4 * before) << bits;
        if (bits == 8) {
          EXPECT_LT(error, 0.03);
        }
        before = error;
      }
    }
  }
}

TEST(LatentAttention, CacheHoldsLatentKeyAndScales) {
  for (const auto& [spec, numbers] : {std::pair{spec_of(), 40 + 24}, {spec_of(0), 40}, {with_qk_norm(spec_of()), 67}}) {
    EXPECT_EQ(spec.kv_elements(), numbers);
    const LatentAttention attention(spec, weights_of(spec).to(at::kBFloat16, at::kCPU));
    KvCache cache;
    attention.forward(random({2, 5, spec.hidden_size}).to(at::kBFloat16), 0, 0, &cache);
    attention.forward(random({2, 1, spec.hidden_size}).to(at::kBFloat16), 5, 0, &cache);
    EXPECT_EQ(cache.tokens(), 6);
    EXPECT_EQ(cache.bytes_per_token(), 2 * numbers);
  }
}

TEST(LatentAttention, HalfPrecisionStaysNear) {
  for (const auto& [name, spec] : cases()) {
    const LatentWeights weights = weights_of(spec);
    const at::Tensor x = random({2, 9, spec.hidden_size});
    const at::Tensor exact = LatentAttention(spec, weights).forward(x, 0, 0, nullptr);
    for (const LatentForm form : {LatentForm::unabsorbed, LatentForm::absorbed}) {
      const at::Tensor found =
          LatentAttention(spec, weights.to(at::kBFloat16, at::kCPU), form).forward(x.to(at::kBFloat16), 0, 0, nullptr);
      EXPECT_EQ(found.scalar_type(), at::kBFloat16);
      EXPECT_LT((found.to(at::kDouble) - exact).norm().item<double>(), 0.03 * exact.norm().item<double>()) << name;
    }
  }
}

TEST(LatentAttention, TheCheaperFormIsChosen) {
  AttentionSpec spec = spec_of();
  spec.kv_lora_rank = 200;  // wide latent: cheap only where few queries meet many keys
  const LatentWeights weights = weights_of(spec);
  const LatentAttention either(spec, weights), absorbed(spec, weights, LatentForm::absorbed),
      unabsorbed(spec, weights, LatentForm::unabsorbed);
  const at::Tensor x = random({1, 31, spec.hidden_size});
  EXPECT_TRUE(at::equal(either.forward(x, 0, 0, nullptr), unabsorbed.forward(x, 0, 0, nullptr)));
  EXPECT_FALSE(at::equal(either.forward(x, 0, 0, nullptr), absorbed.forward(x, 0, 0, nullptr)));
  const auto decoded = [&](const LatentAttention& attention) {
    KvCache cache;
    either.forward(x.narrow(1, 0, 30), 0, 0, &cache);
    return attention.forward(x.narrow(1, 30, 1), 30, 0, &cache);
  };
  EXPECT_TRUE(at::equal(decoded(either), decoded(absorbed)));
  EXPECT_FALSE(at::equal(decoded(either), decoded(unabsorbed)));
}

/// The same function as grouped-query attention with nothing left out: a latent of all keys and values (R = 2*K*D) and
/// a slot for every plane of every KV head (Dr = K * rotary_dim). Dims without RoPE reach their key through the latent.
struct Exact {
  AttentionSpec spec;
  LatentWeights weights;
};

/// Rows (heads*D, ..) as (heads, D, ..).
at::Tensor by_head(const at::Tensor& rows, int64_t heads) { return rows.unflatten(0, {heads, -1}); }

/// Half-split rows (.., n, ..) of axis 1 as complex pairs side by side.
at::Tensor interleaved(const at::Tensor& rows) {
  return rows.unflatten(1, {2, rows.size(1) / 2}).transpose(1, 2).flatten(1, 2);
}

/// (H*D, ..) -> (H*(Dn+Dr), ..): NoPE rows, then the rotary rows at the slots of the head's own KV head.
at::Tensor exact_query(const AttentionSpec& s, const AttentionSpec& target, const at::Tensor& rows,
                       const at::Tensor& gain) {
  const at::Tensor heads = by_head(rows, s.n_heads);  // (H, D, ..)
  const at::Tensor scaled = gain.defined() ? heads * (heads.dim() == 3 ? gain.unsqueeze(-1) : gain) : heads;
  const int64_t rotary = s.rope.rotary_dim, dn = target.qk_nope_head_dim;
  std::vector<int64_t> shape = {s.n_heads, dn + target.qk_rope_head_dim};
  if (rows.dim() == 2) shape.push_back(rows.size(1));
  at::Tensor out = at::zeros(shape, at::kDouble);
  out.narrow(1, 0, dn).copy_(gain.defined() ? heads : heads.narrow(1, rotary, dn));
  for (int64_t h = 0; h < s.n_heads; ++h) {
    const int64_t slot = dn + h / s.group_size() * rotary;
    out[h].narrow(0, slot, rotary).copy_(interleaved(scaled.narrow(1, 0, rotary))[h]);
  }
  return out.flatten(0, 1);
}

/// (K*D, ..) keys and values -> (R+Dr, ..).
at::Tensor exact_down(const AttentionSpec& s, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gain) {
  const at::Tensor heads = by_head(k, s.n_kv_heads);
  const at::Tensor scaled = gain.defined() ? heads * (heads.dim() == 3 ? gain.unsqueeze(-1) : gain) : heads;
  return at::cat({k, v, interleaved(scaled.narrow(1, 0, s.rope.rotary_dim)).flatten(0, 1)}, 0);
}

Exact exact_latent(const AttentionSpec& s, const GroupedQueryWeights& w) {
  const int64_t k = s.n_kv_heads, d = s.head_dim, rotary = s.rope.rotary_dim;
  Exact result{s, {}};
  AttentionSpec& target = result.spec;
  target.kind = AttentionKind::latent;
  target.kv_lora_rank = 2 * k * d;
  target.qk_nope_head_dim = s.qk_norm ? d : d - rotary;
  target.qk_rope_head_dim = k * rotary;
  target.v_head_dim = d;
  target.key_scale_tail = s.qk_norm;
  const std::vector<double> planes = Rope(s.rope).inv_freq(0);
  for (int64_t head = 0; head < k; ++head)
    target.rope_inv_freq.insert(target.rope_inv_freq.end(), planes.begin(), planes.end());

  LatentWeights& out = result.weights;
  out.q_proj = exact_query(s, target, w.q_proj, w.q_norm);
  out.kv_a_proj = exact_down(s, w.k_proj, w.v_proj, w.k_norm);
  if (s.qkv_bias) {
    out.q_bias = exact_query(s, target, w.q_bias, w.q_norm);
    out.kv_a_bias = exact_down(s, w.k_bias, w.v_bias, w.k_norm);
  }
  out.o_proj = w.o_proj;
  out.o_bias = w.o_bias;
  if (s.qk_norm) {
    out.k_norm_proj = w.k_proj;
    out.k_norm_bias = w.k_bias;
  }
  const int64_t dn = target.qk_nope_head_dim;
  out.kv_b_proj = at::zeros({s.n_heads, dn + d, 2 * k * d}, at::kDouble);
  for (int64_t h = 0; h < s.n_heads; ++h) {
    const int64_t kv = h / s.group_size();
    // Key dims beyond the rotated ones: the last d - rotary of either layout.
    for (int64_t i = rotary; i < d; ++i) {
      const double gain = s.qk_norm ? (w.q_norm[i] * w.k_norm[i]).item<double>() : 1.0;
      out.kv_b_proj[h][dn - d + i][kv * d + i] = gain;
    }
    for (int64_t i = 0; i < d; ++i) out.kv_b_proj[h][dn + i][k * d + kv * d + i] = 1.0;
  }
  out.kv_b_proj = out.kv_b_proj.flatten(0, 1);
  return result;
}

AttentionSpec source_spec(int64_t rotary_dim) {
  AttentionSpec spec;
  spec.hidden_size = 50;
  spec.n_heads = 9;
  spec.n_kv_heads = 3;
  spec.head_dim = 48;
  spec.scale = 0.3;
  spec.rope.rotary_dim = rotary_dim;
  return spec;
}

GroupedQueryWeights source_weights(const AttentionSpec& spec) {
  at::manual_seed(9);
  const int64_t q = spec.n_heads * spec.head_dim, kv = spec.n_kv_heads * spec.head_dim, e = spec.hidden_size;
  GroupedQueryWeights w{.q_proj = random({q, e}),
                        .k_proj = random({kv, e}),
                        .v_proj = random({kv, e}),
                        .o_proj = random({e, q}),
                        .q_bias = {},
                        .k_bias = {},
                        .v_bias = {},
                        .o_bias = {},
                        .q_norm = {},
                        .k_norm = {}};
  if (spec.qkv_bias) {
    w.q_bias = random({q});
    w.k_bias = random({kv});
    w.v_bias = random({kv});
  }
  if (spec.qk_norm) {
    w.q_norm = random({spec.head_dim}) + 1;
    w.k_norm = random({spec.head_dim}) + 1;
  }
  return w;
}

TEST(LatentAttention, FullSizeEqualsGroupedQuery) {
  std::vector<Case> sources = {{"llama", source_spec(48)}, {"partial rotary", source_spec(32)}};
  AttentionSpec spec = source_spec(48);
  spec.qkv_bias = true;
  sources.push_back({"qwen2", spec});
  spec = source_spec(48);
  spec.qk_norm = true;
  spec.qk_norm_eps = 1e-3;
  sources.push_back({"qwen3", spec});
  spec.qkv_bias = true;
  spec.rope.rotary_dim = 32;
  sources.push_back({"QK-norm, biases, partial rotary", spec});
  spec = source_spec(48);
  spec.window = 5;
  spec.softcap = 3;
  sources.push_back({"window and soft cap", spec});
  for (const auto& [name, source] : sources) {
    const GroupedQueryWeights weights = source_weights(source);
    const Exact exact = exact_latent(source, weights);
    const at::Tensor x = random({2, 23, 50}) * 3;
    const at::Tensor expected = GroupedQueryAttention(source, weights).forward(x, 0, 0, nullptr);
    for (const LatentForm form : {LatentForm::unabsorbed, LatentForm::absorbed}) {
      const at::Tensor found = LatentAttention(exact.spec, exact.weights, form).forward(x, 0, 0, nullptr);
      EXPECT_LT(difference(found, expected), 1e-9) << name << ", form " << static_cast<int>(form);
    }
  }
}

/// d/ds of sum(forward * probe) with every weight and x moved by s times a direction: autograd against a difference
/// quotient.
void expect_gradient(const AttentionSpec& spec, LatentForm form, const char* name) {
  LatentWeights weights = weights_of(spec);
  at::Tensor x = random({2, 7, spec.hidden_size});
  const at::Tensor probe = at::randn({2, 7, spec.hidden_size}, at::kDouble);
  std::vector<at::Tensor*> leaves = {&x};
  for (at::Tensor* tensor :
       {&weights.q_proj, &weights.kv_a_proj, &weights.kv_b_proj, &weights.o_proj, &weights.k_norm_proj, &weights.q_bias,
        &weights.kv_a_bias, &weights.o_bias, &weights.k_norm_bias}) {
    if (tensor->defined()) leaves.push_back(tensor);
  }
  const auto loss = [&] { return (LatentAttention(spec, weights, form).forward(x, 0, 0, nullptr) * probe).sum(); };
  for (at::Tensor* leaf : leaves) leaf->requires_grad_(true);
  loss().backward();
  for (at::Tensor* leaf : leaves) {
    ASSERT_TRUE(leaf->grad().defined()) << name;
    const at::Tensor start = leaf->detach().clone(), direction = at::randn_like(start);
    const double slope = (leaf->grad() * direction).sum().item<double>();
    constexpr double kStep = 1e-5;
    *leaf = start + kStep * direction;
    const double above = loss().item<double>();
    *leaf = start - kStep * direction;
    const double below = loss().item<double>();
    *leaf = start;
    const double quotient = (above - below) / (2 * kStep);
    EXPECT_NEAR(slope, quotient, 1e-6 * (1 + std::abs(quotient))) << name << ", form " << static_cast<int>(form);
  }
}

TEST(LatentAttention, GradientsEqualDifferenceQuotients) {
  for (const auto& [name, spec] : cases()) {
    for (const LatentForm form : {LatentForm::unabsorbed, LatentForm::absorbed}) expect_gradient(spec, form, name);
  }
}

TEST(LatentAttention, NamesEverythingThatDoesNotFit) {
  AttentionSpec spec = spec_of();
  LatentWeights weights = weights_of(spec);
  weights.kv_b_proj = at::zeros({8, 24}, at::kDouble);
  weights.k_norm_proj = at::zeros({144, 50}, at::kDouble);
  weights.o_proj = at::Tensor();
  try {
    LatentAttention attention(spec, weights);
    FAIL();
  } catch (const ShapeError& error) {
    EXPECT_THAT(error.what(),
                testing::AllOf(testing::HasSubstr("kv_b_proj has shape (8, 24), expected (414, 40)"),
                               testing::HasSubstr("k_norm_proj is there"), testing::HasSubstr("o_proj is missing")));
  }
  const auto fault_of = [&](void (*spoil)(AttentionSpec&)) {
    AttentionSpec bad = spec_of();
    spoil(bad);
    try {
      LatentAttention attention(bad, weights_of(spec_of()));
    } catch (const ShapeError& error) {
      return std::string(error.what());
    }
    return std::string("nothing thrown");
  };
  using testing::HasSubstr;
  EXPECT_THAT(fault_of([](AttentionSpec& s) { s.qk_rope_head_dim = 7; }), HasSubstr("even"));
  EXPECT_THAT(fault_of([](AttentionSpec& s) { s.rope_inv_freq.pop_back(); }), HasSubstr("found 11"));
  EXPECT_THAT(fault_of([](AttentionSpec& s) { s.rope_inv_freq[2] = std::nan(""); }), HasSubstr("finite"));
  EXPECT_THAT(fault_of([](AttentionSpec& s) { s.kv_lora_rank = 0; }), HasSubstr("kv_lora_rank"));
  EXPECT_THAT(fault_of([](AttentionSpec& s) { s.n_kv_heads = 4; }), HasSubstr("n_kv_heads"));
  EXPECT_THAT(fault_of([](AttentionSpec& s) { s.qk_norm = true; }), HasSubstr("key_scale_tail"));
  EXPECT_THAT(fault_of([](AttentionSpec& s) { s.qk_norm = s.key_scale_tail = true; }), HasSubstr("head_dim"));
}

}  // namespace
}  // namespace cinch
