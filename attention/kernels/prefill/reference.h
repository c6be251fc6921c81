// Attention forward and backward in double precision, by the formulas of prefill_abi.h and one loop after the other:
// what the kernels are measured against. Reads the arrays from host memory.
#pragma once

#include <vector>

#include "attention/kernels/prefill/prefill_abi.h"

namespace cinch::prefill {

struct ReferenceForward {
  std::vector<double> out;  // (B, H, T, Dv)
  std::vector<double> lse;  // (B, H, T)
};
ReferenceForward reference_forward(const CinchPrefill& work);

struct ReferenceGradients {
  std::vector<double> d_q;  // (B, H, T, D)
  std::vector<double> d_k;  // (B, K, S, D)
  std::vector<double> d_v;  // (B, K, S, Dv)
};
/// Of q, k, v and d_out alone: out and lse of the forward are not read.
ReferenceGradients reference_backward(const CinchPrefill& work);

}  // namespace cinch::prefill
