// Training samples: windows of a token dataset, in the stateless order of TokenOrder.
//
// Windows are cut from the documents one behind the other, so that none is padded. A token attends to its own document
// alone, and the last token of a document has no target: what follows it by chance is nothing to learn. An end-of-text
// id, where the data has one, belongs to the document that it ends; so the model learns to end a text, and not to guess
// the next one. That is what Megatron's eod_mask_loss with reset_attention_mask does, and Hugging Face's
// DataCollatorWithFlattening; torchtune packs separate attention alike, but its recipes shift targets over the whole
// pack, so that the last token of a document predicts the first of the next. Positions are not reset as these do: with
// rotary embeddings distances alone count (length-dependent ones go by the window's length).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "train/token_order.h"

namespace cinch {

class TokenSamples {
 public:
  /// Disjoint windows of `length` tokens, each with the next one as the last target. `documents`: where documents begin
  /// among the ids (TokenDataset); empty: all is one. Throws UsageError when there are too few tokens for one window,
  /// or it is not positive, ConfigError on bad documents.
  TokenSamples(std::vector<int64_t> ids, int64_t length, uint64_t seed, std::vector<int64_t> documents = {});

  struct Batch {
    at::Tensor ids;      // (B, T) int64
    at::Tensor targets;  // (B, T) int64, the tokens after, kIgnoredTarget at the ends of documents
    /// (B, T) int64, the position in the window where each token's document begins (DecoderLayer::forward); undefined
    /// when the data is one document. Kernels read it on the host: leave it there.
    at::Tensor documents;
  };
  /// `count` samples from `position` of the endless walk on.
  Batch batch(int64_t position, int64_t count) const;
  /// How many targets of that batch are not ignored, without making it.
  int64_t targets(int64_t position, int64_t count) const;
  int64_t samples() const { return order_.samples(); }
  int64_t length() const { return length_; }
  /// XXH3-128 of the tokens, and of the documents where there are several.
  const std::string& digest() const { return digest_; }

 private:
  int64_t first_token(int64_t position) const { return order_.sample(position) * length_; }

  std::vector<int64_t> ids_;
  std::vector<int64_t> documents_;  // none when all is one
  int64_t length_;
  TokenOrder order_;
  std::string digest_;
};

}  // namespace cinch
