#include "model/decoder_model.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace cinch {

ModelTrunk::ModelTrunk(const ModelSource& source, at::ScalarType dtype, at::Device device)
    : ModelTrunk(source.config(), source.family(),
                 [&](const std::string& name) { return source.tensor(name, dtype).to(device); }) {}

ModelTrunk::ModelTrunk(const ModelConfig& config, const ModelFamily& family, const TensorReader& read)
    : config_(&config) {
  embedding_ = read(family.embedding_name());
  head_ = config.tie_word_embeddings ? embedding_ : read(family.head_name());
  norm_ = read(family.final_norm_name());
}

at::Tensor ModelTrunk::embed(const at::Tensor& ids) const {
  const at::Tensor h = at::embedding(embedding_, ids);
  if (config_->embedding_multiplier == 1.0) return h;
  // transformers rounds the multiplier to the model's dtype first (Gemma).
  return h * at::scalar_tensor(config_->embedding_multiplier, h.options());
}

at::Tensor ModelTrunk::logits(const at::Tensor& h) const {
  const at::Tensor x = rms_norm(h, norm_, config_->rms_norm_eps, config_->norm_offset);
  at::Tensor out = at::linear(x, head_);
  if (out.scalar_type() != at::kDouble) out = out.to(at::kFloat);
  if (config_->final_logit_softcap > 0)
    out = at::tanh(out / config_->final_logit_softcap) * config_->final_logit_softcap;
  return out;
}

DecoderModel::DecoderModel(std::shared_ptr<ModelSource> source, at::ScalarType dtype, at::Device device)
    : source_(std::move(source)), trunk_(*source_, dtype, device) {
  const TensorReader read = [&](const std::string& name) { return source_->tensor(name, dtype).to(device); };
  for (int64_t layer = 0; layer < config().n_layers; ++layer) {
    layers_.emplace_back(config(), layer, source_->family().read_layer(config(), layer, read));
  }
}

at::Tensor DecoderModel::forward(const at::Tensor& ids, std::vector<KvCache>* caches, int64_t length) const {
  const int64_t first = caches != nullptr && !caches->empty() ? caches->front().tokens() : 0;
  at::Tensor h = trunk_.embed(ids);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    h = layers_[layer].forward(h, first, length, caches != nullptr ? &(*caches)[layer] : nullptr);
  }
  return trunk_.logits(h);
}

LayerStream::LayerStream(std::shared_ptr<ModelSource> source, at::Tensor windows, Options options)
    : source_(std::move(source)), options_(options), trunk_(*source_, options.dtype, options.device) {
  hidden_ = trunk_.embed(windows.to(options.device));
}

DecoderLayer LayerStream::load_layer() const {
  const TensorReader read = [&](const std::string& name) {
    return source_->tensor(name, options_.dtype).to(options_.device);
  };
  return DecoderLayer(source_->config(), layer_, source_->family().read_layer(source_->config(), layer_, read));
}

int64_t LayerStream::batch_windows() const { return std::max<int64_t>(1, options_.batch_tokens / hidden_.size(1)); }

void LayerStream::advance(const DecoderLayer& layer) {
  const int64_t step = batch_windows();
  for (int64_t first = 0; first < hidden_.size(0); first += step) {
    at::Tensor batch = hidden_.narrow(0, first, std::min(step, hidden_.size(0) - first));
    KvCache cache(options_.cache);
    batch.copy_(layer.forward(batch, 0, 0, options_.cache.rounds() ? &cache : nullptr));
  }
  skip();
}

void LayerStream::skip() {
  // The pages of this layer's weights are not needed again, so memory does not grow with depth.
  for (const WeightSpec& weight : source_->family().weights(source_->config())) {
    if (weight.layer == layer_) source_->tensors().release(weight.name);
  }
  ++layer_;
}

at::Tensor LayerStream::logits(int64_t first, int64_t count) const {
  return trunk_.logits(hidden_.narrow(0, first, count));
}

void stream_logits(std::shared_ptr<ModelSource> source, const at::Tensor& windows, const LayerStream::Options& options,
                   const std::function<void(int64_t first_window, const at::Tensor& logits)>& use) {
  LayerStream stream(std::move(source), windows, options);
  while (!stream.done()) stream.advance(stream.load_layer());
  const int64_t step = std::max<int64_t>(1, 1024 / windows.size(1));
  for (int64_t first = 0; first < windows.size(0); first += step) {
    use(first, stream.logits(first, std::min(step, windows.size(0) - first)));
  }
}

}  // namespace cinch
