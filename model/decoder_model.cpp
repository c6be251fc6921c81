#include "model/decoder_model.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace cinch {

constexpr int64_t kHeadRows = 8192;  // of a stored head converted at a time

ModelTrunk::ModelTrunk(const ModelSource& source, at::ScalarType dtype, at::Device device, bool as_stored)
    : ModelTrunk(source.config(), source.family(), [&](const std::string& name) {
        // The norm, a vector, comes converted; its type tells the computation's.
        const TensorInfo* info = source.tensors().find(name);
        const bool keep = as_stored && device.is_cpu() && info != nullptr && info->shape.size() > 1;
        return source.tensor(name, keep ? torch_dtype(info->dtype) : dtype).to(device);
      }) {}

ModelTrunk::ModelTrunk(const ModelConfig& config, const ModelFamily& family, const TensorReader& read)
    : config_(&config) {
  embedding_ = read(family.embedding_name());
  head_ = config.tie_word_embeddings ? embedding_ : read(family.head_name());
  norm_ = read(family.final_norm_name());
  dtype_ = norm_.scalar_type();
}

at::Tensor ModelTrunk::embed(const at::Tensor& ids) const {
  const at::Tensor h = at::embedding(embedding_, ids.to(embedding_.device())).to(dtype_);
  if (config_->embedding_multiplier == 1.0) return h;
  // transformers rounds the multiplier to the model's dtype first (Gemma).
  return h * at::scalar_tensor(config_->embedding_multiplier, h.options());
}

at::Tensor ModelTrunk::project(const at::Tensor& x) const {
  if (head_.scalar_type() == dtype_) return at::linear(x, head_);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = head_.size(0);
  at::Tensor out = at::empty(shape, x.options());
  for (int64_t first = 0; first < head_.size(0); first += kHeadRows) {
    const int64_t count = std::min(kHeadRows, head_.size(0) - first);
    out.narrow(-1, first, count).copy_(at::linear(x, head_.narrow(0, first, count).to(dtype_)));
  }
  return out;
}

at::Tensor ModelTrunk::logits(const at::Tensor& h) const {
  const at::Tensor x = rms_norm(h, norm_, config_->rms_norm_eps, config_->norm_offset);
  at::Tensor out = project(x);
  if (out.scalar_type() != at::kDouble) out = out.to(at::kFloat);
  if (config_->final_logit_softcap > 0)
    out = at::tanh(out / config_->final_logit_softcap) * config_->final_logit_softcap;
  return out;
}

DecoderModel::DecoderModel(std::shared_ptr<ModelSource> source, at::ScalarType dtype, at::Device device)
    : DecoderModel(source, [&](const std::string& name) { return source->tensor(name, dtype).to(device); }) {}

DecoderModel::DecoderModel(std::shared_ptr<ModelSource> source, const TensorReader& read)
    : source_(std::move(source)), trunk_(source_->config(), source_->family(), read) {
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
    : source_(std::move(source)),
      options_(options),
      trunk_(*source_, options.dtype, options.device, /*as_stored=*/true) {
  hidden_ = trunk_.embed(windows.to(options.device));
}

DecoderLayer LayerStream::load_layer() const {
  const TensorReader read = [&](const std::string& name) {
    return source_->tensor(name, options_.dtype).to(options_.device);
  };
  DecoderLayer layer(source_->config(), layer_, source_->family().read_layer(source_->config(), layer_, read));
  release_pages(/*converted_only=*/true);
  return layer;
}

void LayerStream::release_pages(bool converted_only) const {
  for (const WeightSpec& weight : source_->family().weights(source_->config())) {
    if (weight.layer != layer_) continue;
    const TensorInfo* info = source_->tensors().find(weight.name);
    const bool shared = info != nullptr && info->stored_as.empty() && torch_dtype(info->dtype) == options_.dtype;
    if (!converted_only || !shared) source_->tensors().release(weight.name);
  }
}

int64_t LayerStream::batch_windows() const { return std::max<int64_t>(1, options_.batch_tokens / hidden_.size(1)); }

void LayerStream::advance(const DecoderLayer& layer) {
  const int64_t step = batch_windows();
  for (int64_t first = 0; first < hidden_.size(0); first += step) {
    at::Tensor batch = hidden_.narrow(0, first, std::min(step, hidden_.size(0) - first));
    KvCache cache = window_cache(layer.attention().spec(), options_.cache);
    batch.copy_(layer.forward(batch, 0, 0, options_.cache.rounds() ? &cache : nullptr));
  }
  skip();
}

void LayerStream::skip() {
  release_pages(/*converted_only=*/false);
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
