#include "train/planning/loss_bytes.h"

#include <algorithm>

namespace cinch {
int64_t loss_bytes(const LossShape& shape) {
  const int64_t s = shape.compute_bytes, w = s == 8 ? 8 : 4, narrow = s == w ? 0 : s;
  const bool fused = !shape.on_cpu && s < 8;
  const int64_t row = shape.vocabulary * loss_logit_bytes(fused, s);
  const int64_t rows = std::clamp<int64_t>(shape.chunk_bytes / row, 1, shape.tokens);
  // At once: the student's logits and their log-softmax, the teacher's, its probabilities and a difference; logits in a
  // narrow type are made wide first. Or both models' logits alone.
  const int64_t held = fused ? s * (shape.teacher ? 2 : 1) : w * (shape.teacher ? 5 : 2) + narrow;
  const int64_t chunk = rows * shape.vocabulary * held;
  const int64_t states = shape.tokens * shape.hidden_size * s;
  // The sum of the head's gradient, and a chunk's part of it where that is made in a narrow type.
  const int64_t head = shape.trains_head ? shape.vocabulary * shape.hidden_size * (w + narrow) : 0;
  return states + chunk + head;
}

}  // namespace cinch
