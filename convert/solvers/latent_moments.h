// What the latent solvers know of a layer from the original model: second moments weighted by what the softmax does
// with an error (docs/conversion.md, the latent method, A).
//
// An error e of the score of query t and key s (q . k before scale) moves the head's output by scale * e * P_ts (v_s -
// o_t) to first order, so that it costs scale^2 e^2 w_ts with
//   w_ts = P_ts^2 |W_O (v_s - o_t)|^2,
// times the squared slope of a soft cap. With QK-norm keys are those before the norm's 1/rms (times its gain), an error
// of theirs reaches the score divided by rms, and w_ts carries 1/rms_s^2.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "convert/solvers/source_heads.h"

namespace cinch {

/// Adjacent queries of a part of the heads and the keys up to the last of them, in the problem's dtype, on its device;
/// with a dim of heads in front unless that part is one.
struct HeadBlock {
  int64_t first = 0;   // position of query 0
  at::Tensor p;        // (M, S), S = first + M
  at::Tensor weights;  // (M, S) w
  at::Tensor output;   // (M, D) before o_proj
};

/// Attention of the original model in blocks of queries: keys after a block cost nothing.
class WeighedAttention {
 public:
  WeighedAttention(const HeadStream& stream, const SourceHeads& heads);
  void for_each_block(const Projections& x, const HeadPart& part,
                      const std::function<void(const HeadBlock&)>& use) const;

 private:
  const SourceHeads& heads_;
  const RotationTable& table_;
  std::vector<at::Tensor> masks_;  // of each block
  at::Tensor metric_;              // (H, D, D) W_O^T W_O
};

/// fp64, in internal coordinates (rotation.h). z = [k; v] of all KV heads, before RoPE, 2KD numbers. Means are over all
/// tokens unless said otherwise. The first token is an attention sink in many models, of a norm far beyond all others:
/// where it would drown them it is left out.
struct LatentMoments {
  at::Tensor joint;            // (2KD, 2KD) E z z^T without first tokens
  at::Tensor joint_mean;       // (2KD) E z without first tokens
  at::Tensor first_rows;       // (W, 2KD) z of each window's first token
  at::Tensor query;            // (H, D, D) E (sum_s w_ts) q q^T
  at::Tensor output;           // (H, D, D) E o o^T
  at::Tensor output_mean;      // (H, D)
  at::Tensor lags;             // (H, T) sum of w per lag t - s, keys other than the first
  double output_energy = 0;    // E |attention output|^2 without first tokens
  double residual_energy = 0;  // median |h|^2 of the residual stream before the layer
  int64_t window = 0;          // T
};

/// Over the windows to fit on.
LatentMoments latent_moments(const HeadStream& stream, const SourceHeads& heads);

/// z of every token, (T, 2KD).
at::Tensor joint_rows(const Projections& x);
/// Sums of weights (..., M, S) over the queries, per lag, (..., S) fp64. Queries are the last M positions of S; keys
/// after their query must have weight 0.
at::Tensor lag_sums(const at::Tensor& weights);

}  // namespace cinch
