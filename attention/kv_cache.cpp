#include "attention/kv_cache.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace cinch {
namespace {

constexpr int64_t kBlock = 64;  // tokens

int64_t rounded_up(int64_t tokens) { return (tokens + kBlock - 1) / kBlock * kBlock; }

}  // namespace

KvCache::View KvCache::append(const at::Tensor& k, const at::Tensor& v, int64_t window) {
  const int64_t added = k.size(2);
  if (window > 0 &&
      held_ > window - 1) {  // the oldest new query, at position tokens_, sees the window - 1 tokens before it
    const int64_t dropped = held_ - (window - 1);
    begin_ += dropped;
    held_ -= dropped;
  }
  reserve(k, v, added);
  k_.narrow(2, begin_ + held_, added).copy_(k);
  v_.narrow(2, begin_ + held_, added).copy_(v);
  held_ += added;
  tokens_ += added;
  return view();
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

int64_t KvCache::bytes_allocated() const {
  return k_.defined() ? static_cast<int64_t>(k_.nbytes() + v_.nbytes()) : 0;
}

}  // namespace cinch
