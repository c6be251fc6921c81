#include "train/trained_model.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include "core/errors.h"
#include "model/decoder_model.h"
#include "train/recompute.h"

namespace cinch {
namespace {

/// Through all layers to the final norm; `read` gives weights in the compute type, one layer's at a time.
at::Tensor run_model(const ModelConfig& config, const ModelFamily& family, const TensorReader& read,
                     const at::Tensor& ids, bool recompute) {
  at::Tensor h = ModelTrunk(config, family, read).embed(ids);
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const auto forward = [&config, &family, read, layer](const at::Tensor& x) {
      return DecoderLayer(config, layer, family.read_layer(config, layer, read)).forward(x);
    };
    h = recompute ? recomputed(forward, h) : forward(h);
  }
  return rms_norm(h, read(family.final_norm_name()), config.rms_norm_eps, config.norm_offset);
}

std::string head_tensor(const ModelConfig& config, const ModelFamily& family) {
  return config.tie_word_embeddings ? family.embedding_name() : family.head_name();
}

}  // namespace

TrainedModel::TrainedModel(std::shared_ptr<ModelSource> source, const Options& options)
    : source_(std::move(source)), options_(options) {
  const at::ScalarType master = options.compute == at::kDouble ? at::kDouble : at::kFloat;
  for (const WeightSpec& spec : source_->family().weights(config())) {
    const bool trained = options.trainable == Trainable::all || spec.attention;
    at::Tensor value = source_->tensor(spec.name, trained ? master : options.compute).to(options.device);
    if (trained) {
      value = value.clone().requires_grad_(true);  // not the mapped file
      parameters_.push_back({spec.name, value, spec.layer, spec.attention});
    }
    weights_[spec.name] = std::move(value);
  }
}

at::Tensor TrainedModel::compute_weight(const std::string& name) const {
  return weights_.at(name).to(options_.compute);
}

at::Tensor TrainedModel::hidden(const at::Tensor& ids) const {
  return run_model(
      config(), source_->family(), [this](const std::string& name) { return compute_weight(name); }, ids,
      options_.recompute);
}

at::Tensor TrainedModel::head() const { return compute_weight(head_tensor(config(), source_->family())); }

Teacher::Teacher(std::shared_ptr<ModelSource> source, const TrainedModel& student, at::ScalarType compute,
                 at::Device device)
    : source_(std::move(source)) {
  const ModelConfig &own = source_->config(), &other = student.config();
  if (own.vocab_size != other.vocab_size) {
    throw UnsupportedError(
        fmt::format("the teacher has a vocabulary of {}, the student one of {}", own.vocab_size, other.vocab_size),
        "take the model that the student was converted from");
  }
  std::map<std::string, bool> frozen;
  for (const WeightSpec& spec : student.source().family().weights(other)) {
    frozen[spec.name] = !student.weight(spec.name).requires_grad();
  }
  for (const WeightSpec& spec : source_->family().weights(own)) {
    at::Tensor value = source_->tensor(spec.name, compute).to(device);
    const auto shared = frozen.find(spec.name);
    const bool same = shared != frozen.end() && shared->second && value.sizes() == student.weight(spec.name).sizes() &&
                      at::equal(value, student.weight(spec.name));
    if (same) {
      value = student.weight(spec.name);
      source_->tensors().release(spec.name);
    } else {
      own_bytes_ += static_cast<int64_t>(value.nbytes());
    }
    weights_[spec.name] = std::move(value);
  }
}

at::Tensor Teacher::hidden(const at::Tensor& ids) const {
  const at::NoGradGuard no_grad;
  return run_model(
      source_->config(), source_->family(), [this](const std::string& name) { return weights_.at(name); }, ids,
      /*recompute=*/false);
}

const at::Tensor& Teacher::head() const { return weights_.at(head_tensor(source_->config(), source_->family())); }

}  // namespace cinch
