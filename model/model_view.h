// A model seen otherwise: everything is the inner model's but what a subclass overrides.
#pragma once

#include <memory>

#include "model/model_source.h"

namespace cinch {

class ModelView : public ModelSource {
 public:
  explicit ModelView(std::shared_ptr<ModelSource> inner) : inner_(std::move(inner)) {}
  const std::filesystem::path& path() const override { return inner_->path(); }
  const ModelConfig& config() const override { return inner_->config(); }
  const ModelFamily& family() const override { return inner_->family(); }
  const TensorSource& tensors() const override { return inner_->tensors(); }
  std::unique_ptr<Tokenizer> tokenizer() const override { return inner_->tokenizer(); }
  std::optional<GgufVocabulary> vocabulary() const override { return inner_->vocabulary(); }
  std::map<std::string, std::string> side_files() const override { return inner_->side_files(); }
  std::string quality_note() const override { return inner_->quality_note(); }

 protected:
  std::shared_ptr<ModelSource> inner_;
};

}  // namespace cinch
