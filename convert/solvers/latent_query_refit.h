// Refit of the query side of a latent attention in the metric of the softmax (docs/conversion.md, the latent method,
// C2), jointly for the latent and the rotary part.
//
// With f_n the cached features of key n (LatentMaps) and q_m the original query at sampled positions m, the map A_h of
// each head minimises
//   (1/N) sum_m sum_n p_mn (e_mn - sum_n' p_mn' e_mn')^2 + damping tr(S (A_h - A_h0) Q (A_h - A_h0)^T),
// e_mn the original score minus (A_h q_m) . f_n, both with their rotations, p the original probabilities: twice the
// divergence of the softmax to second order. With a soft cap its slope multiplies e. S is the p-centred second moment
// of the features (of the rotary part the mean power per pair), Q that of the queries. The quadratic is conditional on
// the queries: errors at queries that occur count, not those at queries of the same covariance.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "convert/solvers/latent_maps.h"

namespace cinch {

class LatentQueryProblem {
 public:
  /// Around maps.query, on the windows to fit on, `positions` stratified random query positions in each.
  LatentQueryProblem(const HeadStream& stream, const SourceHeads& heads, const LatentMaps& maps, int64_t positions);

  /// The first term per head (H), at query maps (H, R + Dr, D).
  at::Tensor loss(const at::Tensor& query) const;
  /// The second without its factor, (H).
  at::Tensor distance(const at::Tensor& query) const;
  /// Maps (H, R + Dr, D) after preconditioned conjugate-gradient steps on both terms.
  at::Tensor solve(int steps, double damping) const;
  /// Sampled positions of each window, ascending, on the CPU.
  const std::vector<at::Tensor>& positions() const { return positions_; }

 private:
  /// Some neighbouring queries of a window and the S keys up to the last of them: later keys cost nothing.
  struct Block {
    at::Tensor features;      // (S, R + Dr)
    at::Tensor queries;       // (H, M, D)
    RotationTable table;      // (M, Dr/2) of the queries
    at::Tensor weight, mean;  // (H, M, S) p times the squared slope and p times the slope
    at::Tensor key_scale;     // (H, 1, S) or undefined
  };
  /// Query maps (H, R + Dr, D) as the blocks take them: (H, D, R + Dr) in the stream's dtype, on its device.
  at::Tensor device_maps(const at::Tensor& query) const;
  /// Scores of such maps, (H, M, S).
  at::Tensor scores(const Block& block, const at::Tensor& maps) const;
  /// What a gradient on the scores (H, M, S) puts on the query maps, (H, R + Dr, D).
  at::Tensor pulled_back(const Block& block, const at::Tensor& gradient) const;
  /// Half the Hessian of the first term times x.
  at::Tensor apply(const at::Tensor& x) const;
  void add_moments(const Block& block, const HeadPart& part, int64_t rank);

  at::TensorOptions options_;  // of the stream
  std::vector<Block> blocks_;
  std::vector<at::Tensor> positions_;
  at::Tensor start_;                          // (H, R + Dr, D)
  at::Tensor start_loss_;                     // (H)
  at::Tensor right_side_;                     // (H, R + Dr, D) minus half the gradient at the start
  at::Tensor feature_moment_, query_moment_;  // (H, R + Dr, R + Dr) S, (H, D, D) Q
  double count_ = 0;                          // N
};

}  // namespace cinch
