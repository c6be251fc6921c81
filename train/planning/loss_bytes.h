// What train/linear_cross_entropy_kd holds besides its inputs, from sizes alone. No torch here.
#pragma once

#include <cstdint>

namespace cinch {

struct LossShape {
  int64_t tokens = 0, vocabulary = 0, hidden_size = 0;
  int64_t compute_bytes = 4;  // of the inputs' numbers
  bool teacher = true;
  bool trains_head = false;
  int64_t chunk_bytes = int64_t{256} << 20;
};

/// At the worst moment of forward and backward pass: chunks of logits, the hidden states' gradient and the head's.
int64_t loss_bytes(const LossShape& shape);

}  // namespace cinch
