// Logits of a written model by the formulas of the runtimes' own classes, on the tensors as they lie in its files: a
// second, plain writing of transformers' modeling_llama.py, modeling_qwen2/3.py and modeling_deepseek_v3.py and of
// llama.cpp's graphs for llama, qwen2, qwen3 and deepseek2. It shares no layout code with the reader and the writer, so
// that `export` can check both.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>

namespace cinch {

/// True when the formulas are written here: llama, mistral without window, qwen2, qwen3, dense deepseek_v3, with RoPE
/// of type default, linear or (latents) longrope.
bool has_stock_reference(const std::filesystem::path& path);

/// ids (T) int64 -> logits (T, V) fp32. Loads one tensor at a time. Throws ConfigError on missing keys.
at::Tensor stock_reference_logits(const std::filesystem::path& path, const at::Tensor& ids);

}  // namespace cinch
