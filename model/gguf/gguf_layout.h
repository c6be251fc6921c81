// Where GGUF keeps a Hugging Face tensor: names, the row order of q and k for arch llama, Gemma's norms with the one
// added, the latent's up-projection as two tensors. Source: llama.cpp's gguf-py tensor_mapping and convert_hf_to_gguf.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace cinch {

struct GgufPart {
  std::string name;
  std::vector<int64_t> shape;
};

/// One Hugging Face tensor of a model in a GGUF file.
class GgufPlacement {
 public:
  /// Throws UnsupportedError when the tensor has no name there.
  GgufPlacement(const ModelConfig& config, const std::string& hf_name, const std::vector<int64_t>& hf_shape);

  const std::vector<GgufPart>& parts() const { return parts_; }
  /// False: the one part holds the same numbers in the same order.
  bool changes() const { return form_ != Form::same; }
  /// Hugging Face tensor -> its parts, and back.
  std::vector<at::Tensor> to_parts(const at::Tensor& tensor) const;
  at::Tensor from_parts(const std::vector<at::Tensor>& parts) const;

 private:
  enum class Form {
    same,
    interleaved_rows,  // row (half, j) of each head stands at 2j + half
    one_more,          // 1 + w
    latent_up,         // (H*(Dn+Dv), R) as keys (H, R, Dn) and values (H, Dv, R)
  };
  const ModelConfig& config_;
  Form form_ = Form::same;
  std::vector<GgufPart> parts_;
  std::vector<int64_t> shape_;  // (out, in) of the Hugging Face tensor
};

/// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight", also from the name of a part; nothing for names
/// that do not belong to the family.
std::optional<std::string> gguf_to_hf_name(const std::string& name, const std::string& family);

}  // namespace cinch
