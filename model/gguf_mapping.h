// Between GGUF's names and layouts and Hugging Face's: config from metadata, tensor names, the row order of q and k for
// arch llama. Source: llama.cpp's gguf-py tensor_mapping and convert_hf_to_gguf (LlamaModel.permute).
#pragma once

#include <map>
#include <optional>
#include <string>

#include "checkpoints/formats/gguf.h"
#include "model/model_config.h"
#include "text/tokenizer.h"

namespace cinch {

/// A config.json that says what the metadata say. Throws UnsupportedError naming an architecture that cinch does not
/// know.
Json gguf_to_config(const GgufSource& source);
/// "llama" for Mistral, else the family's name.
std::string gguf_architecture(const ModelConfig& config);

GgufVocabulary read_gguf_vocabulary(const GgufSource& source);
/// Adds the tokenizer.ggml.* keys, padded to `vocab_size` tokens.
void add_gguf_vocabulary(const GgufVocabulary& vocabulary, int64_t vocab_size, GgufMetadata& metadata);

/// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; nothing for names that do not belong to the
/// family.
std::optional<std::string> gguf_to_hf_name(const std::string& name, const std::string& family);
std::optional<std::string> hf_to_gguf_name(const std::string& name, const std::string& family);

/// True when the rows of this Hugging Face tensor are in another order in a GGUF of this family: within each head,
/// half-split row (half, j) stands at 2j + half.
bool has_permuted_rows(const std::string& hf_name, const std::string& family);

/// True when a GGUF of this family stores 1 + w where Hugging Face stores w (Gemma's norms).
bool stores_one_plus_weight(const std::string& hf_name, const std::string& family);

/// Metadata of a GGUF of `config`; `vocabulary` may be null. `file_type` is ggml's number (0 F32, 1 F16, 7 Q8_0, 32
/// BF16). Throws UnsupportedError when llama.cpp would compute another function.
GgufMetadata gguf_metadata_of(const ModelConfig& config, const GgufVocabulary* vocabulary, uint32_t file_type,
                              const std::string& chat_template);

}  // namespace cinch
