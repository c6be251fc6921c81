#include "attention/kv_cache.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace cinch {
namespace {

constexpr int64_t kBlock = 64;  // tokens

int64_t rounded_up(int64_t tokens) { return (tokens + kBlock - 1) / kBlock * kBlock; }

}  // namespace

KvCache::View KvCache::append(const at::Tensor& k, const at::Tensor& v, int64_t window) {
  const int64_t added = k.size(2), before = tokens_;
  drop_unseen(window);
  reserve(k, v, added);
  k_.narrow(2, begin_ + held_, added).copy_(k);
  v_.narrow(2, begin_ + held_, added).copy_(v);
  held_ += added;
  tokens_ += added;
  pack(before);
  return view();
}

void KvCache::drop_unseen(int64_t window) {
  // The oldest new query, at position tokens_, sees the window - 1 tokens before it.
  if (window <= 0 || held_ <= window - 1) return;
  int64_t kept = window - 1;
  // A page's scales are those of all its tokens.
  if (format_ == CacheFormat::int4) kept = std::min(held_, tokens_ - (tokens_ - kept) / kCachePage * kCachePage);
  begin_ += held_ - kept;
  held_ = kept;
}

void KvCache::pack(int64_t before) {
  if (format_ == CacheFormat::sixteen_bit) return;
  const bool pages = format_ == CacheFormat::int4;
  const int64_t first = pages ? before / kCachePage * kCachePage : before;
  const int64_t end = pages ? tokens_ / kCachePage * kCachePage : tokens_;
  if (end <= first) return;
  const at::Tensor rows = k_.narrow(2, begin_ + held_ - (tokens_ - first), end - first);  // (B, 1, T, columns)
  rows.copy_(as_cached(rows.squeeze(1), format_, columns_).unsqueeze(1));
}

KvCache::View KvCache::view() const {
  if (!k_.defined()) return {{}, {}, 0};
  return {k_.narrow(2, begin_, held_), v_.narrow(2, begin_, held_), tokens_ - held_};
}

void KvCache::reserve(const at::Tensor& k, const at::Tensor& v, int64_t added) {
  const int64_t capacity = k_.defined() ? k_.size(2) : 0;
  if (begin_ + held_ + added <= capacity) return;
  // At least doubling keeps the copies linear in the tokens seen; with a window it leaves room to slide.
  const int64_t wanted = std::max(capacity, rounded_up(held_ + std::max(added, held_)));
  const auto moved = [&](const at::Tensor& old, const at::Tensor& like) {
    at::Tensor grown = at::empty({like.size(0), like.size(1), wanted, like.size(3)}, like.options());
    if (held_ > 0) grown.narrow(2, 0, held_).copy_(old.narrow(2, begin_, held_));
    return grown;
  };
  k_ = moved(k_, k);
  v_ = moved(v_, v);
  begin_ = 0;
}

int64_t KvCache::bytes_per_token() const {
  if (!k_.defined()) return 0;
  return bytes_allocated() / (k_.size(0) * k_.size(2));
}

int64_t KvCache::bytes_allocated() const { return k_.defined() ? static_cast<int64_t>(k_.nbytes() + v_.nbytes()) : 0; }

KvCache window_cache(const AttentionSpec& spec, const CachePrecision& precision) {
  if (precision.served != CacheFormat::sixteen_bit && spec.kind == AttentionKind::latent)
    return {precision.served, cache_columns(spec)};
  return KvCache(precision);
}

}  // namespace cinch
