#include "model/export/stock_latent.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "checkpoints/layout.h"
#include "checkpoints/tensor_view.h"
#include "core/errors.h"
#include "model/export/rotary_form.h"
#include "model/families/standard_family.h"
#include "model/model_view.h"

namespace cinch {
namespace {

// Exponents of two, which no type rounds. The error of the neutral norm is mean(c^2) 2^-(2k+1) for a weight 2^k.
constexpr int kNormExponent = 20;
constexpr int kSplitNormExponent = 5, kSplitInputExponent = -8;  // fp16 has 5 bits of exponent
// Root mean square that latents get then: smaller ones lose digits below fp16's normal range, larger ones feel the
// norm.
constexpr double kSplitLatentRms = 1.0;

constexpr int64_t kNoLayer = -2;  // -1 is what lies outside the layers

at::Tensor fp64(const at::Tensor& x) { return x.to(at::kDouble); }

/// Rows of zeros until dim `dim` is `size` long.
at::Tensor padded(const at::Tensor& x, int64_t dim, int64_t size) {
  if (x.size(dim) == size) return x;
  std::vector<int64_t> missing = x.sizes().vec();
  missing[static_cast<size_t>(dim)] = size - x.size(dim);
  return at::cat({x, at::zeros(missing, x.options())}, dim);
}

const char* activation_key(Activation activation) {
  return activation == Activation::silu ? "silu" : activation == Activation::gelu ? "gelu" : "gelu_pytorch_tanh";
}

/// One value where the class has one.
void check_uniform(const ModelConfig& config) {
  const AttentionSpec& first = config.layers.front();
  for (const AttentionSpec& spec : config.layers) {
    if (spec.kind != AttentionKind::latent || spec.rope_inv_freq != first.rope_inv_freq ||
        spec.qk_nope_head_dim != first.qk_nope_head_dim || spec.v_head_dim != first.v_head_dim ||
        spec.scale != first.scale) {
      throw UnsupportedError(
          "a stock class has one kind of attention, one list of rotary frequencies and one head size for all layers");
    }
  }
}

/// What scales which weights; all powers of two but the latent's and the residual stream's.
struct Scales {
  double query = 1;            // of the queries: the class divides scores by sqrt(Dn + Dr)
  double latent = 1;           // of the latent's rows
  double norm = 1;             // weight of the latent's norm: latent * norm / sqrt(eps) = 1
  double input = 1;            // of the attention's input norm
  double residual = 1;         // of everything that enters the residual stream
  bool evens_latents = false;  // each layer's latent gets one size
};

Json stock_config(const ModelConfig& config, const StockLatentOptions& options, int64_t rank, int64_t nope) {
  const AttentionSpec& spec = config.layers.front();
  Json json;
  json["architectures"] = Json::array({"DeepseekV3ForCausalLM"});
  json["model_type"] = "deepseek_v3";
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_hidden_layers"] = config.n_layers;
  json["num_attention_heads"] = json["num_key_value_heads"] = spec.n_heads;
  json["hidden_act"] = activation_key(config.activation);
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["rms_norm_eps"] = options.rms_norm_eps > 0 ? options.rms_norm_eps : config.rms_norm_eps;
  json["q_lora_rank"] = nullptr;
  json["kv_lora_rank"] = rank;
  json["qk_nope_head_dim"] = nope;
  json["qk_rope_head_dim"] = spec.qk_rope_head_dim;
  json["v_head_dim"] = spec.v_head_dim;
  json["attention_bias"] = options.biases && (spec.qkv_bias || spec.output_bias);
  json["tie_word_embeddings"] = false;  // not every runtime ties, and the embedding may be rescaled
  // All layers are dense; stock configs insist on integers for the experts that there are not.
  json["first_k_dense_replace"] = config.n_layers;
  json["moe_intermediate_size"] = config.intermediate_size;
  json["n_routed_experts"] = 8;
  json["n_shared_experts"] = json["n_group"] = json["topk_group"] = json["moe_layer_freq"] = 1;
  json["num_experts_per_tok"] = 2;
  json["routed_scaling_factor"] = 1.0;
  json["norm_topk_prob"] = true;
  json["scoring_func"] = "sigmoid";
  json["topk_method"] = "noaux_tc";
  json["rope_interleave"] = true;
  write_rotary_entry(rotary_entry(spec.rope_inv_freq, config.max_position_embeddings), options.poison, json);
  if (options.stretches_linear && json["rope_scaling"].is_object()) json["rope_scaling"]["mscale_all_dim"] = 1.0;
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache"}) {
    if (config.source.contains(key)) json[key] = config.source.at(key);
  }
  // The class's own defaults are DeepSeek's ids.
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    if (!json.contains(key)) json[key] = nullptr;
  }
  json["torch_dtype"] = config.dtype;
  return json;
}

class StockTensors : public TensorView {
 public:
  StockTensors(const ModelSource& source, const ModelConfig& config, const ModelFamily& family, Scales scales)
      : TensorView(source.tensors()), source_(source), config_(config), scales_(scales) {
    for (WeightSpec& weight : family.weights(config)) {
      const TensorInfo* kept = inner_.find(kept_name(weight.name));
      tensors_.push_back({weight.name, kept != nullptr ? kept->dtype : Dtype::kF64, std::move(weight.shape),
                          kept != nullptr ? kept->stored_as : ""});
      layer_of_[tensors_.back().name] = weight.layer;
    }
    build_index();
    for (const WeightSpec& weight : source.family().weights(source.config()))
      source_names_[weight.layer].push_back(weight.name);
  }

  TensorData read(const std::string& name) const override {
    const TensorInfo& info = require_tensor(*this, name);
    if (const std::string kept = kept_name(name); inner_.find(kept) != nullptr) {
      TensorData data = inner_.read(kept);
      data.info = info;
      return data;
    }
    const std::scoped_lock lock(mutex_);
    const int64_t layer = layer_of_.at(name);
    const at::Tensor made = layer < 0 ? fp64(stored(name)) * scales_.residual  // the embedding
                                      : layer_tensor(layer, name.substr(layer_prefix(layer).size()));
    auto bytes = std::make_shared<std::vector<std::byte>>(to_bytes(made, Dtype::kF64));
    return {info, *bytes, bytes};
  }
  void release(const std::string& name) const override {
    const std::string kept = kept_name(name);
    if (inner_.find(kept) != nullptr) inner_.release(kept);
  }

 private:
  /// The source's name of the very same tensor; empty where it has to be computed.
  std::string kept_name(const std::string& name) const {
    const ModelFamily& family = source_.family();
    const auto is = [&](const char* end) { return name.ends_with(end); };
    if (name.find(".self_attn.") != std::string::npos) return {};
    if (scales_.input != 1 && is(".input_layernorm.weight")) return {};
    if (scales_.residual != 1 && (name == family.embedding_name() || is(".down_proj.weight"))) return {};
    const bool tied = source_.config().tie_word_embeddings && name == family.head_name();
    return tied ? family.embedding_name() : name;
  }

  at::Tensor stored(const std::string& name) const {
    const TensorData data = inner_.read(name);
    return to_torch(data, torch_dtype(data.info.dtype));
  }

  const LayerWeights& weights(int64_t layer) const {
    if (cached_layer_ != layer) {
      cached_ = {};
      for (const std::string& name : source_names_[cached_layer_]) inner_.release(name);
      cached_ = source_.family().read_layer(source_.config(), layer,
                                            [this](const std::string& name) { return stored(name); });
      cached_layer_ = layer;
    }
    return cached_;
  }

  at::Tensor layer_tensor(int64_t layer, const std::string& name) const {
    const LayerWeights& w = weights(layer);
    if (name == "mlp.gate_proj.weight") return fp64(w.mlp.gate_proj);
    if (name == "mlp.up_proj.weight") return fp64(w.mlp.up_proj);
    if (name == "mlp.down_proj.weight") return fp64(w.mlp.down_proj) * scales_.residual;
    if (name == "input_layernorm.weight") return fp64(w.input_norm) * scales_.input;
    if (name == "post_attention_layernorm.weight") return fp64(w.post_attention_norm);
    return attention_tensor(source_.config().layers.at(static_cast<size_t>(layer)), w,
                            name.substr(std::string("self_attn.").size()));
  }

  at::Tensor attention_tensor(const AttentionSpec& from, const LayerWeights& layer, const std::string& name) const {
    const auto& w = std::get<LatentWeights>(layer.attention);
    const AttentionSpec& to = config_.layers.front();
    const int64_t r = from.kv_lora_rank, dn = from.qk_nope_head_dim, dr = from.qk_rope_head_dim;
    if (name == "q_proj.weight") {
      const at::Tensor rows = fp64(w.q_proj).unflatten(0, {from.n_heads, dn + dr});
      const at::Tensor heads = at::cat({rows.slice(1, 0, dn), rows.slice(1, dn) * rotary_balance(w)}, 1).flatten(0, 1);
      return per_head(heads, dn, to.qk_nope_head_dim) * (scales_.query / scales_.input);
    }
    if (name == "kv_a_proj_with_mqa.weight") {
      const at::Tensor rows = fp64(w.kv_a_proj) / scales_.input;
      const at::Tensor latent = rows.slice(0, 0, r) * (scales_.latent * size_of_latent(layer).down);
      return at::cat({padded(latent, 0, to.kv_lora_rank), rows.slice(0, r, r + dr) / rotary_balance(w)}, 0);
    }
    if (name == "kv_a_layernorm.weight") return at::full({to.kv_lora_rank}, scales_.norm, at::kDouble);
    if (name == "kv_b_proj.weight") {
      const at::Tensor rows = per_head(w.kv_b_proj, dn, to.qk_nope_head_dim) * size_of_latent(layer).up;
      return padded(rows, 1, to.kv_lora_rank);
    }
    if (name == "o_proj.weight") return fp64(w.o_proj) * scales_.residual;
    if (name == "kv_a_proj_with_mqa.bias") return key_bias(w, to);
    if (name == "o_proj.bias") return output_bias(from, w) * scales_.residual;
    throw UnsupportedError(fmt::format("the stock class has no tensor {}", name));
  }

  /// A power of two that moves from the rotary key, whose rows may be hundreds, into the queries, so that both fit
  /// fp16.
  double rotary_balance(const LatentWeights& w) const {
    const AttentionSpec& to = config_.layers.front();
    const int64_t dr = to.qk_rope_head_dim;
    if (!scales_.evens_latents || dr == 0) return 1;
    const at::Tensor queries = w.q_proj.unflatten(0, {to.n_heads, -1});
    const double q = queries.slice(1, queries.size(1) - dr).abs().max().item<double>();
    const double k = w.kv_a_proj.slice(0, w.kv_a_proj.size(0) - dr).abs().max().item<double>();
    return q > 0 && k > 0 ? std::exp2(std::round(0.5 * std::log2(k / q))) : 1;
  }

  struct LatentSize {
    double down = 1, up = 1;  // factors on the latent's rows and on what reads it
  };
  /// As if the normalised input were white, which is right to some ten percent. `up` also makes up for what the norm
  /// then takes from the mean latent.
  LatentSize size_of_latent(const LayerWeights& layer) const {
    if (!scales_.evens_latents) return {};
    const auto& w = std::get<LatentWeights>(layer.attention);
    const AttentionSpec& to = config_.layers.front();
    const at::Tensor rows = fp64(w.kv_a_proj.slice(0, 0, w.kv_a_proj.size(0) - to.qk_rope_head_dim));
    const double power = (rows * fp64(layer.input_norm)).square().sum().item<double>();
    if (!(power > 0)) return {};
    const double rms = std::sqrt(power / static_cast<double>(to.kv_lora_rank));
    const double down = std::exp2(std::round(std::log2(kSplitLatentRms / rms)));
    return {down, std::hypot(1.0, rms * down / scales_.norm) / down};
  }

  /// Rows (H*(Dn+n), ..) with the first Dn of each head padded to `nope`.
  at::Tensor per_head(const at::Tensor& rows, int64_t dn, int64_t nope) const {
    const at::Tensor heads = fp64(rows).unflatten(0, {config_.layers.front().n_heads, -1});
    const at::Tensor rest = heads.slice(1, dn);
    return at::cat({padded(heads.slice(1, 0, dn), 1, nope), rest}, 1).flatten(0, 1);
  }

  /// The rotary key's. A bias of the latent adds the same to all scores of a query, which the softmax does not see, and
  /// a constant to the values (output_bias).
  at::Tensor key_bias(const LatentWeights& w, const AttentionSpec& to) const {
    at::Tensor bias = at::zeros({to.kv_lora_rank + to.qk_rope_head_dim}, at::kDouble);
    if (w.kv_a_bias.defined()) {
      const int64_t dr = to.qk_rope_head_dim;
      bias.slice(0, to.kv_lora_rank).copy_(w.kv_a_bias.slice(0, w.kv_a_bias.size(0) - dr) / rotary_balance(w));
    }
    return bias;
  }

  static at::Tensor output_bias(const AttentionSpec& from, const LatentWeights& w) {
    at::Tensor bias = w.o_bias.defined() ? fp64(w.o_bias) : at::zeros({from.hidden_size}, at::kDouble);
    if (!w.kv_a_bias.defined()) return bias;
    const at::Tensor up = fp64(w.kv_b_proj).unflatten(0, {from.n_heads, -1}).slice(1, from.qk_nope_head_dim);
    const at::Tensor values = up.flatten(0, 1).mv(fp64(w.kv_a_bias).slice(0, 0, from.kv_lora_rank));  // (H*Dv)
    return bias + fp64(w.o_proj).mv(values);
  }

  const ModelSource& source_;
  const ModelConfig& config_;
  Scales scales_;
  std::map<std::string, int64_t> layer_of_;
  mutable std::mutex mutex_;
  mutable std::map<int64_t, std::vector<std::string>> source_names_;  // by layer, for release
  mutable int64_t cached_layer_ = kNoLayer;
  mutable LayerWeights cached_;
};

class StockLatentView : public ModelView {
 public:
  StockLatentView(std::shared_ptr<ModelSource> source, const StockLatentOptions& options)
      : ModelView(std::move(source)) {
    const ModelConfig& from = inner_->config();
    check_uniform(from);
    int64_t rank = options.rank;
    for (const AttentionSpec& spec : from.layers) rank = std::max(rank, spec.kv_lora_rank);
    const AttentionSpec& spec = from.layers.front();
    Json json = stock_config(from, options, rank, std::max(spec.qk_nope_head_dim, options.least_nope_dim));
    if (options.latent_norm_eps != 1e-6) json["kv_a_layernorm_eps"] = options.latent_norm_eps;
    config_ = deepseek_v3_family().parse({std::move(json), path().string()});

    Scales scales;
    const AttentionSpec& to = config_.layers.front();
    scales.query = spec.scale / to.scale;
    scales.norm = std::ldexp(1.0, options.split_scale ? kSplitNormExponent : kNormExponent);
    scales.latent = std::sqrt(options.latent_norm_eps) / scales.norm;
    if (options.split_scale) {
      scales.input = std::ldexp(1.0, kSplitInputExponent);
      scales.evens_latents = true;
    }
    if (options.rms_norm_eps > 0) scales.residual = std::sqrt(options.rms_norm_eps / from.rms_norm_eps);
    tensors_ = std::make_unique<StockTensors>(*inner_, config_, deepseek_v3_family(), scales);
  }

  const ModelConfig& config() const override { return config_; }
  const ModelFamily& family() const override { return deepseek_v3_family(); }
  const TensorSource& tensors() const override { return *tensors_; }

 private:
  ModelConfig config_;
  std::unique_ptr<StockTensors> tensors_;
};

}  // namespace

std::shared_ptr<ModelSource> as_stock_latent(std::shared_ptr<ModelSource> source, const StockLatentOptions& options) {
  return std::make_shared<StockLatentView>(std::move(source), options);
}

}  // namespace cinch
