// The tiny models and numbers that tests/golden/eval/make_golden.py computed with Hugging Face transformers.
#pragma once

#include "core/json.h"
#include "model/model_source.h"
#include "tests/support/assets.h"

namespace cinch {

inline Json golden_eval() { return JsonObject::from_file(repo_file("tests/golden/eval/golden.json")).json(); }
inline std::shared_ptr<ModelSource> golden_model(const std::string& name) {
  return ModelSource::open(repo_file("tests/golden/eval/" + name));
}

}  // namespace cinch
