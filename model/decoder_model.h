// A whole model in memory, for generation and tests; and LayerStream, which runs many token windows holding one layer's
// weights at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

#include "model/decoder_layer.h"
#include "model/model_source.h"

namespace cinch {

/// The parts outside the layers.
class ModelTrunk {
 public:
  /// `as_stored`: embedding and head stay as the file has them (mapped, where it is not quantised) and are converted
  /// piece by piece, for large vocabularies and few uses.
  ModelTrunk(const ModelSource& source, at::ScalarType dtype, at::Device device, bool as_stored = false);
  /// From any reader, for models that are not on disk as such. `config` must outlive the trunk.
  ModelTrunk(const ModelConfig& config, const ModelFamily& family, const TensorReader& read);
  /// ids (B, T) int64 -> (B, T, E)
  at::Tensor embed(const at::Tensor& ids) const;
  /// h (..., E) -> logits (..., V), fp32 (fp64 in fp64 mode): final norm, head, soft cap.
  at::Tensor logits(const at::Tensor& h) const;
  at::ScalarType dtype() const { return dtype_; }
  at::Device device() const { return norm_.device(); }

 private:
  at::Tensor project(const at::Tensor& x) const;  // through the head

  const ModelConfig* config_;
  at::ScalarType dtype_;
  at::Tensor embedding_;  // (V, E)
  at::Tensor head_;       // (V, E); the embedding when tied
  at::Tensor norm_;       // (E)
};

class DecoderModel {
 public:
  DecoderModel(std::shared_ptr<ModelSource> source, at::ScalarType dtype, at::Device device = at::kCPU);
  /// With weights from any reader; of `source` only config and family are used.
  DecoderModel(std::shared_ptr<ModelSource> source, const TensorReader& read);
  /// ids (B, T) -> logits (B, T, V) fp32. With caches (one per layer) positions continue from what they hold; `length`:
  /// see DecoderLayer.
  at::Tensor forward(const at::Tensor& ids, std::vector<KvCache>* caches = nullptr, int64_t length = 0) const;
  const ModelConfig& config() const { return source_->config(); }
  const ModelTrunk& trunk() const { return trunk_; }
  const std::vector<DecoderLayer>& layers() const { return layers_; }
  at::ScalarType dtype() const { return trunk_.dtype(); }  // computed in
  at::Device device() const { return trunk_.device(); }

 private:
  std::shared_ptr<ModelSource> source_;
  ModelTrunk trunk_;
  std::vector<DecoderLayer> layers_;
};

/// Walks a model layer by layer over the same token windows. Memory: one layer's weights and one hidden state per
/// token.
class LayerStream {
 public:
  struct Options {
    at::ScalarType dtype = at::kFloat;
    at::Device device = at::kCPU;
    int64_t batch_tokens = 4096;  // windows are batched up to this many tokens
    CachePrecision cache = {};    // below 16 bits every window goes through a cache of this precision
  };
  /// windows: (W, T) int64, all of one length.
  LayerStream(std::shared_ptr<ModelSource> source, at::Tensor windows, Options options);

  /// Residual stream before the next layer, (W, T, E).
  at::Tensor& hidden() { return hidden_; }
  const at::Tensor& hidden() const { return hidden_; }
  int64_t layer() const { return layer_; }
  bool done() const { return layer_ == source_->config().n_layers; }
  /// Loads the next layer's weights (released when the stream moves on).
  DecoderLayer load_layer() const;
  /// Runs every window through `layer` and moves on. `layer` may have other attention than the file.
  void advance(const DecoderLayer& layer);
  /// Moves on without running anything: the caller has put the next layer's input into hidden() itself. Releases the
  /// layer's mapped pages.
  void skip();
  int64_t batch_windows() const;
  const ModelTrunk& trunk() const { return trunk_; }
  /// Logits of windows [first, first + count), (count, T, V), after the last layer.
  at::Tensor logits(int64_t first, int64_t count = 1) const;
  /// For logits of chosen rows of `hidden`, when a whole window's would be too many.

 private:
  /// The mapped pages of this layer's weights, so that memory does not grow with depth; `converted_only`: those that
  /// were converted to the stream's type, whose bytes nobody reads any more.
  void release_pages(bool converted_only) const;

  std::shared_ptr<ModelSource> source_;
  Options options_;
  ModelTrunk trunk_;
  at::Tensor hidden_;
  int64_t layer_ = 0;
};

/// Runs all layers and hands each batch of windows' logits (b, T, V) to `use` with the index of its first window.
void stream_logits(std::shared_ptr<ModelSource> source, const at::Tensor& windows, const LayerStream::Options& options,
                   const std::function<void(int64_t first_window, const at::Tensor& logits)>& use);

}  // namespace cinch
