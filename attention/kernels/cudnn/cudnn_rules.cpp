#include "attention/kernels/cudnn/cudnn_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace cinch {
namespace {

constexpr int64_t kWidthStep = 8;
constexpr int64_t kWidest = 256;
constexpr int32_t kOldestDevice = 80;

/// Widest of Dk and Dv with a gradient.
int64_t widest_with_gradient(int32_t compute_capability) { return compute_capability / 10 == 9 ? kWidest : 128; }

/// Multi-head latent attention's own widths have kernels where wider ones do not.
bool are_latent_widths(const CinchCudnnShape& shape, int32_t compute_capability) {
  return compute_capability / 10 == 10 && shape.key_width == 192 && shape.value_width == 128;
}

std::string missing_in_backward(const CinchCudnnShape& shape, int32_t compute_capability) {
  const int64_t widest = widest_with_gradient(compute_capability);
  if (std::max(shape.key_width, shape.value_width) > widest && !are_latent_widths(shape, compute_capability)) {
    return fmt::format("gradients of heads of more than {} on devices of compute capability {}.{}", widest,
                       compute_capability / 10, compute_capability % 10);
  }
  return "";
}

uint64_t product(std::initializer_list<int64_t> factors) {
  uint64_t result = 1;
  for (const int64_t factor : factors) {
    const auto next = static_cast<uint64_t>(factor);
    if (next != 0 && result > std::numeric_limits<uint64_t>::max() / 16 / next) {
      return std::numeric_limits<uint64_t>::max() / 16;  // sums of a few such do not overflow
    }
    result *= next;
  }
  return result;
}

int64_t rounded_up(int64_t tokens) { return (tokens + 127) / 128 * 128; }

}  // namespace

std::string missing_in_cudnn(const CinchCudnnShape& shape, int32_t compute_capability) {
  if (compute_capability < kOldestDevice) return "devices before compute capability 8.0";
  if (shape.heads % shape.kv_heads != 0) return "query heads that are no multiple of the key heads";
  if (shape.key_width % kWidthStep != 0 || shape.value_width % kWidthStep != 0) {
    return "heads that are no multiple of 8";
  }
  if (std::max(shape.key_width, shape.value_width) > kWidest) return "heads of more than 256";
  if (shape.queries > shape.keys) return "more queries than keys";
  if (shape.queries == 1) return "a single query";  // the decode kernels' work
  if (shape.window > std::numeric_limits<int32_t>::max()) return "a window of more than 2^31 tokens";
  return shape.pass == CINCH_CUDNN_BACKWARD ? missing_in_backward(shape, compute_capability) : "";
}

uint64_t cudnn_workspace_bound(const CinchCudnnShape& shape) {
  constexpr uint64_t kCounters = 4096;
  if (shape.pass != CINCH_CUDNN_BACKWARD) return kCounters;
  const int64_t queries = rounded_up(shape.queries), keys = rounded_up(shape.keys);
  // In fp32: the gradient of q, twice where the kernel sums apart; one number per row.
  uint64_t bytes = kCounters + product({shape.batch, shape.heads, queries, 4});
  bytes += 2 * product({shape.batch, shape.heads, queries, shape.key_width, 4});
  // The gradients of k and v of every query head before they are summed over the group.
  if (shape.heads != shape.kv_heads) {
    bytes += product({shape.batch, shape.heads, keys, shape.key_width + shape.value_width, 2});
  }
  if (shape.deterministic != 0) bytes += product({shape.batch, shape.heads, queries, keys, 2});
  return bytes;
}

}  // namespace cinch
