#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "attention/kernels/kernels.h"

namespace cinch {

at::Tensor visible_keys(const AttentionRequest& request) {
  const auto options = at::TensorOptions(at::kLong).device(request.q.device());
  const at::Tensor t = at::arange(request.first_query, request.first_query + request.q.size(2), options).unsqueeze(1);
  const at::Tensor s = at::arange(request.first_key, request.first_key + request.k.size(2), options).unsqueeze(0);
  at::Tensor seen = s <= t;
  if (request.window > 0) seen.logical_and_(t - s < request.window);
  if (!request.documents.defined()) return seen;
  return seen.logical_and(s >= request.documents.to(request.q.device()).unsqueeze(1).unsqueeze(3));
}

bool window_is_idle(const AttentionRequest& request) {
  return request.window <= 0 || request.first_query + request.q.size(2) - request.first_key <= request.window;
}

at::Tensor run_in_query_blocks(const AttentionRequest& request, int64_t block,
                               const std::function<at::Tensor(const AttentionRequest&)>& kernel) {
  const int64_t queries = request.q.size(2), keys = request.k.size(2);
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < queries; begin += block) {
    const int64_t count = std::min(block, queries - begin);
    AttentionRequest part = request;
    part.first_query = request.first_query + begin;
    const int64_t oldest = request.window > 0 ? part.first_query - request.window + 1 : request.first_key;
    const int64_t key_begin = std::clamp<int64_t>(oldest - request.first_key, 0, keys);
    const int64_t key_end = std::clamp<int64_t>(part.first_query + count - request.first_key, key_begin, keys);
    part.q = request.q.narrow(2, begin, count);
    if (request.documents.defined()) part.documents = request.documents.narrow(1, begin, count);
    part.k = request.k.narrow(2, key_begin, key_end - key_begin);
    part.v = request.v.narrow(2, key_begin, key_end - key_begin);
    part.first_key = request.first_key + key_begin;
    parts.push_back(kernel(part));
  }
  return parts.size() == 1 ? parts.front() : at::cat(parts, 2);
}

}  // namespace cinch
