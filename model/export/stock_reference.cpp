#include "model/export/stock_reference.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <functional>
#include <memory>

#include "checkpoints/formats/gguf.h"
#include "core/errors.h"
#include "core/json.h"
#include "model/mixed_layers.h"
#include "model/model_source.h"

namespace cinch {
namespace {

/// What the formulas need to know, whoever wrote it down.
struct Sizes {
  std::string model_type;
  int64_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t rank = 0, nope = 0, rotary = 0, value = 0;  // latent attention; rank 0: grouped queries
  bool narrow_queries = false;                        // q_lora_rank
  double eps = 0, latent_eps = 0, scale = 0;
  bool neighbours = false;       // a rotated pair lies side by side, not half a head apart
  std::vector<double> inv_freq;  // (rotated/2)
};

/// base^(-2s/width) over one factor.
std::vector<double> base_frequencies(double base, int64_t width, double factor) {
  std::vector<double> list;
  for (int64_t slot = 0; slot < width / 2; ++slot) {
    list.push_back(std::pow(base, -2.0 * static_cast<double>(slot) / static_cast<double>(width)) / factor);
  }
  return list;
}

/// The tensors by what they are ("q", "o_bias"), layer -1 outside the layers; undefined when absent.
using Tensors = std::function<at::Tensor(int64_t layer, const std::string& what)>;

struct Written {
  Sizes sizes;
  Tensors tensor;
};

/// In its own type: large ones are turned into fp32 piece by piece.
at::Tensor stored_tensor(const TensorSource& source, const std::string& name) {
  if (source.find(name) == nullptr) return {};
  const TensorData data = source.read(name);
  return to_torch(data, torch_dtype(data.info.dtype));
}

bool is_known_type(const std::string& type) {
  return type == "llama" || type == "mistral" || type == "qwen2" || type == "qwen3" || type == "deepseek_v3";
}

// Hugging Face folders.

Sizes sizes_of_config(const JsonObject& json) {
  Sizes s;
  s.model_type = json.string("model_type");
  s.layers = json.integer("num_hidden_layers");
  s.heads = json.integer("num_attention_heads");
  s.eps = json.number("rms_norm_eps");
  const double theta = json.number_or("rope_theta", 10000.0);
  const auto scaling = json.object_if("rope_scaling");
  const std::string type = scaling ? scaling->string("rope_type") : "default";
  if (json.has("kv_lora_rank")) {
    s.rank = json.integer("kv_lora_rank");
    s.nope = json.integer("qk_nope_head_dim");
    s.rotary = json.integer("qk_rope_head_dim");
    s.value = json.integer("v_head_dim");
    s.narrow_queries = json.has("q_lora_rank");
    s.latent_eps = 1e-6;  // DeepseekV3RMSNorm's default
    s.neighbours = true;
    s.scale = 1 / std::sqrt(static_cast<double>(s.nope + s.rotary));
  } else {
    s.kv_heads = json.integer("num_key_value_heads");
    s.head_dim = json.integer_or("head_dim", json.integer("hidden_size") / s.heads);
    s.rotary = s.head_dim;
    s.scale = 1 / std::sqrt(static_cast<double>(s.head_dim));
  }
  s.inv_freq = base_frequencies(theta, s.rotary, type == "linear" ? scaling->number("factor") : 1);
  if (type == "longrope") {
    const std::vector<double> divisors = scaling->numbers("short_factor");
    for (size_t slot = 0; slot < s.inv_freq.size(); ++slot) s.inv_freq[slot] /= divisors.at(slot);
  }
  return s;
}

Written open_folder(const std::filesystem::path& path) {
  const std::shared_ptr<TensorSource> source = open_tensors(path);
  const auto tensor = [source](int64_t layer, const std::string& what) {
    static const std::map<std::string, std::string> names = {{"embedding", "model.embed_tokens.weight"},
                                                             {"final_norm", "model.norm.weight"},
                                                             {"head", "lm_head.weight"},
                                                             {"norm", "input_layernorm.weight"},
                                                             {"mlp_norm", "post_attention_layernorm.weight"},
                                                             {"gate", "mlp.gate_proj.weight"},
                                                             {"up", "mlp.up_proj.weight"},
                                                             {"down", "mlp.down_proj.weight"},
                                                             {"gate_bias", "mlp.gate_proj.bias"},
                                                             {"up_bias", "mlp.up_proj.bias"},
                                                             {"down_bias", "mlp.down_proj.bias"},
                                                             {"q", "self_attn.q_proj.weight"},
                                                             {"k", "self_attn.k_proj.weight"},
                                                             {"v", "self_attn.v_proj.weight"},
                                                             {"o", "self_attn.o_proj.weight"},
                                                             {"q_bias", "self_attn.q_proj.bias"},
                                                             {"k_bias", "self_attn.k_proj.bias"},
                                                             {"v_bias", "self_attn.v_proj.bias"},
                                                             {"o_bias", "self_attn.o_proj.bias"},
                                                             {"q_norm", "self_attn.q_norm.weight"},
                                                             {"k_norm", "self_attn.k_norm.weight"},
                                                             {"q_a", "self_attn.q_a_proj.weight"},
                                                             {"q_a_bias", "self_attn.q_a_proj.bias"},
                                                             {"q_a_norm", "self_attn.q_a_layernorm.weight"},
                                                             {"q_b", "self_attn.q_b_proj.weight"},
                                                             {"kv_a", "self_attn.kv_a_proj_with_mqa.weight"},
                                                             {"kv_a_bias", "self_attn.kv_a_proj_with_mqa.bias"},
                                                             {"kv_a_norm", "self_attn.kv_a_layernorm.weight"},
                                                             {"kv_b", "self_attn.kv_b_proj.weight"}};
    const auto found = names.find(what);
    if (found == names.end()) return at::Tensor();
    return stored_tensor(*source, layer < 0 ? found->second : fmt::format("model.layers.{}.{}", layer, found->second));
  };
  return {sizes_of_config(JsonObject::from_file(path / "config.json")), tensor};
}

// GGUF files.

Sizes sizes_of_metadata(const GgufSource& source) {
  const std::string arch = source.text("general.architecture").value_or("");
  const auto integer = [&](const char* key) { return source.integer(fmt::format("{}.{}", arch, key)).value(); };
  const auto number = [&](const char* key) { return source.number(fmt::format("{}.{}", arch, key)).value(); };
  Sizes s;
  s.model_type = arch;
  s.layers = integer("block_count");
  s.heads = integer("attention.head_count");
  s.eps = s.latent_eps = number("attention.layer_norm_rms_epsilon");
  s.rotary = integer("rope.dimension_count");
  const bool linear = source.text(arch + ".rope.scaling.type").value_or("none") == "linear";
  const double factor = linear ? number("rope.scaling.factor") : 1.0;
  s.inv_freq = base_frequencies(number("rope.freq_base"), s.rotary, factor);
  if (arch == "deepseek2") {
    s.rank = integer("attention.kv_lora_rank");
    s.nope = integer("attention.key_length_mla") - s.rotary;
    s.value = integer("attention.value_length_mla");
    s.narrow_queries = integer("attention.q_lora_rank") > 0;
    s.neighbours = true;
    const double stretch = 1 + 0.1 * std::log(factor);  // build_deepseek2: mscale^2 / sqrt(n_embd_head_k)
    s.scale = stretch * stretch / std::sqrt(static_cast<double>(s.nope + s.rotary));
  } else {
    s.kv_heads = integer("attention.head_count_kv");
    s.head_dim = integer("attention.key_length");
    s.neighbours = arch == "llama";  // LLAMA_ROPE_TYPE_NORM; the others NEOX
    s.scale = 1 / std::sqrt(static_cast<double>(s.head_dim));
  }
  return s;
}

Written open_gguf(const std::filesystem::path& path) {
  const std::shared_ptr<GgufSource> source = GgufSource::open(path);
  const Sizes sizes = sizes_of_metadata(*source);
  const auto tensor = [source, sizes](int64_t layer, const std::string& what) -> at::Tensor {
    static const std::map<std::string, std::string> names = {{"embedding", "token_embd.weight"},
                                                             {"final_norm", "output_norm.weight"},
                                                             {"head", "output.weight"},
                                                             {"norm", "attn_norm.weight"},
                                                             {"mlp_norm", "ffn_norm.weight"},
                                                             {"gate", "ffn_gate.weight"},
                                                             {"up", "ffn_up.weight"},
                                                             {"down", "ffn_down.weight"},
                                                             {"gate_bias", "ffn_gate.bias"},
                                                             {"up_bias", "ffn_up.bias"},
                                                             {"down_bias", "ffn_down.bias"},
                                                             {"q", "attn_q.weight"},
                                                             {"k", "attn_k.weight"},
                                                             {"v", "attn_v.weight"},
                                                             {"o", "attn_output.weight"},
                                                             {"q_bias", "attn_q.bias"},
                                                             {"k_bias", "attn_k.bias"},
                                                             {"v_bias", "attn_v.bias"},
                                                             {"o_bias", "attn_output.bias"},
                                                             {"q_norm", "attn_q_norm.weight"},
                                                             {"k_norm", "attn_k_norm.weight"},
                                                             {"q_a", "attn_q_a.weight"},
                                                             {"q_a_norm", "attn_q_a_norm.weight"},
                                                             {"q_b", "attn_q_b.weight"},
                                                             {"kv_a", "attn_kv_a_mqa.weight"},
                                                             {"kv_a_norm", "attn_kv_a_norm.weight"}};
    if (what == "kv_b") {  // per head, keys transposed
      const at::Tensor keys = stored_tensor(*source, fmt::format("blk.{}.attn_k_b.weight", layer));    // (H, R, n)
      const at::Tensor values = stored_tensor(*source, fmt::format("blk.{}.attn_v_b.weight", layer));  // (H, v, R)
      return at::cat({keys.transpose(1, 2), values.to(keys.scalar_type())}, 1).reshape({-1, sizes.rank});
    }
    const auto found = names.find(what);
    if (found == names.end()) return {};
    return stored_tensor(*source, layer < 0 ? found->second : fmt::format("blk.{}.{}", layer, found->second));
  };
  return {sizes, tensor};
}

// The formulas.

at::Tensor norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x * at::rsqrt(x.square().mean(-1, true) + eps) * weight;
}

/// x (heads, T, width) rotated by position times frequency.
at::Tensor rotate(const at::Tensor& x, const Sizes& s) {
  const auto planes = static_cast<int64_t>(s.inv_freq.size());
  if (planes == 0) return x;
  const at::Tensor frequency = at::tensor(at::ArrayRef<double>(s.inv_freq), at::kDouble);
  const at::Tensor angle = at::outer(at::arange(x.size(1), at::kDouble), frequency);
  const at::Tensor cos = angle.cos().to(at::kFloat), sin = angle.sin().to(at::kFloat);  // (T, planes)
  const at::Tensor pairs = s.neighbours ? x.unflatten(-1, {planes, 2}) : x.unflatten(-1, {2, planes}).transpose(-1, -2);
  const at::Tensor a = pairs.select(-1, 0), b = pairs.select(-1, 1);
  const at::Tensor turned = at::stack({a * cos - b * sin, a * sin + b * cos}, -1);
  return s.neighbours ? turned.flatten(-2) : turned.transpose(-1, -2).flatten(-2);
}

/// x (T, heads*n) as (heads, T, n).
at::Tensor heads_first(const at::Tensor& x, int64_t heads) { return x.unflatten(-1, {heads, -1}).transpose(0, 1); }

/// q (H, T, n), k (H, T, n), v (H, T, m) -> (T, H*m)
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  at::Tensor scores = q.matmul(k.transpose(1, 2)) * scale;
  const at::Tensor future = at::ones({q.size(1), q.size(1)}, at::kBool).triu(1);
  scores = scores.masked_fill(future, -INFINITY).softmax(-1);
  return scores.matmul(v).transpose(0, 1).flatten(1);
}

class Layer {
 public:
  Layer(const Written& written, int64_t index) : s_(written.sizes), tensor_(written.tensor), index_(index) {}

  at::Tensor forward(const at::Tensor& h) const {
    const at::Tensor x = norm(h, get("norm"), s_.eps);
    const at::Tensor seen = s_.rank > 0 ? latent(x) : grouped(x);
    const at::Tensor middle = h + at::linear(seen, get("o"), get("o_bias"));
    const at::Tensor y = norm(middle, get("mlp_norm"), s_.eps);
    const at::Tensor gated = at::silu(at::linear(y, get("gate"), get("gate_bias")));
    return middle + at::linear(gated * at::linear(y, get("up"), get("up_bias")), get("down"), get("down_bias"));
  }

 private:
  at::Tensor get(const std::string& what) const {
    const at::Tensor found = tensor_(index_, what);
    return found.defined() ? found.to(at::kFloat) : found;
  }

  at::Tensor latent(const at::Tensor& x) const {
    at::Tensor q =
        s_.narrow_queries
            ? at::linear(norm(at::linear(x, get("q_a"), get("q_a_bias")), get("q_a_norm"), s_.latent_eps), get("q_b"))
            : at::linear(x, get("q"));
    q = heads_first(q, s_.heads);
    const at::Tensor down = at::linear(x, get("kv_a"), get("kv_a_bias"));
    const at::Tensor cached = norm(down.narrow(1, 0, s_.rank), get("kv_a_norm"), s_.latent_eps);
    const at::Tensor shared = rotate(down.narrow(1, s_.rank, s_.rotary).unsqueeze(0), s_);
    const at::Tensor kv = heads_first(at::linear(cached, get("kv_b")), s_.heads);  // (H, T, n+v)
    const at::Tensor k = at::cat({kv.narrow(2, 0, s_.nope), shared.expand({s_.heads, -1, -1})}, 2);
    q = at::cat({q.narrow(2, 0, s_.nope), rotate(q.narrow(2, s_.nope, s_.rotary), s_)}, 2);
    return causal_attention(q, k, kv.narrow(2, s_.nope, s_.value), s_.scale);
  }

  at::Tensor grouped(const at::Tensor& x) const {
    at::Tensor q = heads_first(at::linear(x, get("q"), get("q_bias")), s_.heads);
    at::Tensor k = heads_first(at::linear(x, get("k"), get("k_bias")), s_.kv_heads);
    at::Tensor v = heads_first(at::linear(x, get("v"), get("v_bias")), s_.kv_heads);
    if (s_.model_type == "qwen3") {
      q = norm(q, get("q_norm"), s_.eps);
      k = norm(k, get("k_norm"), s_.eps);
    }
    const int64_t group = s_.heads / s_.kv_heads;
    k = rotate(k, s_).repeat_interleave(group, 0);
    return causal_attention(rotate(q, s_), k, v.repeat_interleave(group, 0), s_.scale);
  }

  const Sizes& s_;
  const Tensors& tensor_;
  int64_t index_;
};

/// x (T, E) through a head (V, E) of any type.
at::Tensor through_head(const at::Tensor& x, const at::Tensor& head) {
  constexpr int64_t kRows = 16384;
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < head.size(0); first += kRows) {
    const at::Tensor rows = head.slice(0, first, first + kRows).to(at::kFloat);
    parts.push_back(at::linear(x, rows));
  }
  return at::cat(parts, 1);
}

bool is_gguf(const std::filesystem::path& path) { return !std::filesystem::is_directory(path); }

}  // namespace

bool has_stock_reference(const std::filesystem::path& path) {
  const auto written = ModelSource::open(path);
  const ModelConfig& config = written->config();
  const AttentionSpec& spec = config.layers.front();
  const bool latent = spec.kind == AttentionKind::latent;
  if (!native_reason(config).empty() || !is_known_type(config.family) || config.activation != Activation::silu)
    return false;
  for (const AttentionSpec& layer : config.layers) {
    if (layer.window > 0 && layer.window < config.max_position_embeddings) return false;
  }
  const std::string& rope = spec.rope.type;
  return rope == "default" || rope == "linear" || (latent && rope == "longrope");
}

at::Tensor stock_reference_logits(const std::filesystem::path& path, const at::Tensor& ids) {
  const Written written = is_gguf(path) ? open_gguf(path) : open_folder(path);
  const at::Tensor embedding = written.tensor(-1, "embedding");
  at::Tensor h = embedding.index_select(0, ids).to(at::kFloat);  // (T, E)
  for (int64_t layer = 0; layer < written.sizes.layers; ++layer) h = Layer(written, layer).forward(h);
  const at::Tensor head = written.tensor(-1, "head");
  const at::Tensor last = norm(h, written.tensor(-1, "final_norm").to(at::kFloat), written.sizes.eps);
  return through_head(last, head.defined() ? head : embedding);
}

}  // namespace cinch
