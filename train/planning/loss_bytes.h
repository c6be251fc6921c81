// What train/linear_cross_entropy_kd holds besides its inputs, from sizes alone. No torch here.
#pragma once

#include <cstdint>

namespace cinch {

/// What a chunk's logits and their gradients may take. A GPU needs more rows at once to reach its speed: measured on an
/// H100 at 8192 x 128256 x 4096 in bf16, a KL step takes 0.132 s at 256 MiB, 0.085 at 1 GiB, 0.084 at 2 GiB.
constexpr int64_t loss_chunk_bytes(bool on_cpu) { return int64_t{on_cpu ? 256 : 1024} << 20; }

/// What a chunk's rows are counted for, for each logit: both models' logits where one kernel does the rest, else the
/// student's, the teacher's, the gradient and one that an operation makes, in fp32 (fp64).
constexpr int64_t loss_logit_bytes(bool fused, int64_t compute_bytes) {
  return fused ? 2 * compute_bytes : 4 * (compute_bytes == 8 ? 8 : 4);
}

struct LossShape {
  int64_t tokens = 0, vocabulary = 0, hidden_size = 0;
  int64_t compute_bytes = 4;  // of the inputs' numbers
  bool teacher = true;
  bool trains_head = false;
  bool on_cpu = true;  // else one kernel does what lies between the matrix products
  int64_t chunk_bytes = int64_t{256} << 20;
};

/// At the worst moment of forward and backward pass: chunks of logits, the hidden states' gradient and the head's.
int64_t loss_bytes(const LossShape& shape);

}  // namespace cinch
