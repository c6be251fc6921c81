// The language model's head, the next-token loss and the distance to a teacher's distribution as one operation that
// goes through the tokens in chunks: logits of all tokens (tokens x vocabulary) exist neither for the student nor for
// the teacher. Gradients are made while the loss is computed, as in Liger's fused linear cross entropy (arXiv
// 2410.10989).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace cinch {

constexpr int64_t kIgnoredTarget = -100;  // a position that is no part of the loss

struct LossWeights {
  double cross_entropy = 0;  // of the next token
  double distillation = 1;   // KL(teacher || student)
};

struct LossInputs {
  at::Tensor hidden;          // (N, E) of the student, after its final norm
  at::Tensor head;            // (V, E)
  at::Tensor teacher_hidden;  // (N, E'), undefined without distillation
  at::Tensor teacher_head;    // (V, E')
  at::Tensor targets;         // (N) int64: next tokens, or kIgnoredTarget
};

struct LossOptions {
  LossWeights weights = {};
  double softcap = 0;                        // of both models' logits; 0: none
  int64_t denominator = 0;                   // tokens that the sums are divided by; 0: those that are not ignored
  int64_t chunk_bytes = int64_t{256} << 20;  // what a chunk's logits and their gradients may take
};

struct LossValue {
  at::Tensor total;          // scalar, differentiable in hidden and head
  at::Tensor cross_entropy;  // scalar fp64, nats per token; 0 with a weight of 0
  at::Tensor distillation;   // the same, of the KL
};

/// Softmax and sums in fp32 (fp64 for fp64 inputs); matrix products in the inputs' type, the head's gradient summed in
/// fp32 at least. Throws ShapeError when the inputs do not fit each other.
LossValue linear_cross_entropy_kd(const LossInputs& inputs, const LossOptions& options);

/// Rows of a chunk, at so many bytes for each of a row's logits.
int64_t loss_chunk_rows(int64_t vocabulary, int64_t logit_bytes, int64_t chunk_bytes);

}  // namespace cinch
