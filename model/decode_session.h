// Decoding of several sequences at once, token by token, with every layer's cache on the device: prompts go in by
// prefill(), then each step() takes one token of every sequence. Layers that a decode kernel covers have paged caches;
// the others run as DecoderModel::forward does, one sequence after the other, and explain() says why.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/cache_format.h"
#include "attention/decode/decode_batch.h"
#include "attention/decode/decode_layer.h"
#include "attention/device_graph.h"
#include "attention/kernels/decode/decode_functions.h"
#include "model/decoder_model.h"

namespace cinch {

struct DecodeSessionOptions {
  int64_t batch = 1;       // B
  int64_t max_tokens = 0;  // of one sequence, prompt and new ones; length-dependent RoPE is chosen for so many
  CacheFormat cache_format = CacheFormat::sixteen_bit;  // of latent layers; others hold 16 bits (or the model's type)
  DecodeKernel kernel = DecodeKernel::automatic;
  bool graphs = true;  // record the step on CUDA, where all layers have kernels
  int64_t prefill_chunk = 512;
};

class DecodeSession {
 public:
  /// `functions`: the kernels that work on the memory of the model's tensors, or null for none. `model` must outlive
  /// the session. Throws UsageError for sizes below 1, UnsupportedError naming the layer and the rule where a kernel
  /// was asked for that does not cover it, and where a cache of fewer bits has no latent layer.
  DecodeSession(const DecoderModel& model, const DecodeSessionOptions& options, const DecodeFunctions* functions);
  DecodeSession(const DecodeSession&) = delete;  // a recorded step knows where it is
  DecodeSession& operator=(const DecodeSession&) = delete;

  /// One prompt per sequence, of one token or more each. Returns the logits after their last tokens, (B, V) fp32.
  /// Sequences must be empty.
  at::Tensor prefill(const std::vector<std::vector<int64_t>>& prompts);
  /// For benchmarks: as though every sequence had `tokens` tokens, with random numbers in the caches.
  void fill(int64_t tokens);

  /// One more token of every sequence, ids (B) int64 on any device: logits (B, V) fp32, valid until the next step.
  /// Throws UsageError when a sequence would grow beyond max_tokens.
  const at::Tensor& step(const at::Tensor& ids);
  /// The same with the most likely token after the last logits, which stays on the device.
  const at::Tensor& step_greedy();
  /// The most likely token after the last logits, per sequence; waits for the device.
  std::vector<int64_t> next_ids() const;

  const std::vector<int64_t>& lengths() const { return batch_->host_lengths(); }  // (B) tokens seen

  /// What each layer runs, and why no kernel that would come first.
  const std::vector<DecodeChoice>& choices() const { return choices_; }
  /// The same for people, equal neighbours in one line: "layers 0 to 31: sm90".
  std::vector<std::string> explain() const;
  /// Of all layers, in order and without repeats: "sm90, mma".
  std::string kernel_name() const;
  /// Whether steps are replayed from a graph, and else why not.
  bool uses_graph() const { return graph_ != nullptr; }
  const std::string& why_no_graph() const { return why_no_graph_; }

  /// What one more token of one sequence takes in all layers, its share of full pages; where a cache format is emulated
  /// (emulates_cache), what it would take.
  int64_t kv_bytes_per_token() const;
  /// Of one sequence of so many tokens.
  int64_t kv_bytes(int64_t tokens) const;
  int64_t kv_bytes_allocated() const;
  /// Whether a cache below 16 bits holds rounded numbers of the model's type: layers without a kernel.
  bool emulates_cache() const;
  /// The rows that a layer's cache gives back for one sequence, for tests: keys (1, K, S, D) and values, or of latent
  /// attention entries (1, 1, S, R+Dr+K) and nothing. With a window only tokens that are still held.
  CachedRows cached(int64_t layer, int64_t sequence) const;

 private:
  std::string reason_against_graph() const;
  void compute_step();
  /// Logits after the last token, (1, V).
  at::Tensor prefill_sequence(const std::vector<int64_t>& prompt, int64_t sequence);

  const DecoderModel* model_;
  DecodeSessionOptions options_;
  std::unique_ptr<DecodeBatch> batch_;
  std::vector<std::unique_ptr<DecodeLayer>> layers_;
  std::vector<DecodeChoice> choices_;
  at::Tensor ids_;     // (B) int64 on the device: the next step's tokens
  at::Tensor logits_;  // (B, V)
  std::unique_ptr<DeviceGraph> graph_;
  std::string why_no_graph_;
  int64_t steps_ = 0;
};

}  // namespace cinch
