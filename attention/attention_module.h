// What every attention layer can do, whatever its kind.
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_spec.h"
#include "attention/kv_cache.h"

namespace cinch {

class AttentionModule {
 public:
  virtual ~AttentionModule() = default;
  virtual const AttentionSpec& spec() const = 0;

  /// Output of all heads before o_proj, (B, T, H*Dv), from x (B, T, E) at positions first..first+T-1 of a sequence of
  /// `length` tokens (length <= 0: what is seen). With a cache the tokens are added to it and its tokens are seen.
  /// `documents`: that of AttentionRequest.
  virtual at::Tensor head_outputs(const at::Tensor& x, int64_t first, int64_t length, KvCache* cache,
                                  const at::Tensor& documents = {}) const = 0;
  /// o_proj alone: (B, T, H*Dv) -> (B, T, E).
  virtual at::Tensor output(const at::Tensor& head_outputs) const = 0;

  /// head_outputs through o_proj: (B, T, E).
  at::Tensor forward(const at::Tensor& x, int64_t first, int64_t length, KvCache* cache,
                     const at::Tensor& documents = {}) const {
    return output(head_outputs(x, first, length, cache, documents));
  }
};

}  // namespace cinch
