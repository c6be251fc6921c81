// Between GGUF's metadata and Hugging Face's config.json. Source: llama.cpp's gguf-py constants and
// convert_hf_to_gguf. Tensors: gguf_layout.h.
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
/// "llama" for Mistral, "deepseek2" for deepseek_v3, else the family's name.
std::string gguf_architecture(const ModelConfig& config);
/// query_pre_attn_scalar that llama.cpp takes for a Gemma-2 of these sizes.
int64_t gemma2_attention_scalar(const ModelConfig& config);

GgufVocabulary read_gguf_vocabulary(const GgufSource& source);
/// Adds the tokenizer.ggml.* keys, padded to `vocab_size` tokens.
void add_gguf_vocabulary(const GgufVocabulary& vocabulary, int64_t vocab_size, GgufMetadata& metadata);

/// Metadata of a GGUF of `config`; `vocabulary` may be null. `file_type` is ggml's number (0 F32, 1 F16, 7 Q8_0, 32
/// BF16). What llama.cpp would compute otherwise: runtime_rules.h.
GgufMetadata gguf_metadata_of(const ModelConfig& config, const GgufVocabulary* vocabulary, uint32_t file_type,
                              const std::string& chat_template);

}  // namespace cinch
