// A layer of a decode session without a decode kernel: one growing cache per sequence, one sequence after the other.
#pragma once

#include <vector>

#include "attention/decode/decode_layer.h"

namespace cinch {

class PlainLayer : public DecodeLayer {
 public:
  PlainLayer(const AttentionModule& attention, const DecodeBatch& batch, CacheFormat format);

  at::Tensor prefill(const at::Tensor& x, int64_t sequence, int64_t first) override;
  at::Tensor step(const at::Tensor& x) override;
  void fill(int64_t tokens) override;
  CachedRows cached(int64_t sequence) const override;
  double bytes_per_token() const override;
  int64_t bytes_per_sequence() const override;
  int64_t bytes_allocated() const override;

 private:
  const AttentionModule& attention_;
  const DecodeBatch& batch_;
  CacheFormat format_;
  std::vector<KvCache> caches_;  // (B)
};

}  // namespace cinch
