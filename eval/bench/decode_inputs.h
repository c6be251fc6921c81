// Random inputs of a decode case on a device, and the fp64 result of some of its heads.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "eval/bench/decode_case.h"

namespace cinch {

/// Dense caches are one tensor per sequence; paged ones pages of 64 tokens of which each sequence has its own, in
/// random order. Undefined: not of this layout or case.
struct DecodeInputs {
  at::Tensor q;            // (B, H, Dk)
  at::Tensor k;            // dense (B, K, S, Dk); paged (P, K, 64, Dk); of latents K = 1 and the rows are keys
  at::Tensor v;            // the same with Dv'; of latents the first R columns of k
  at::Tensor packed;       // below 16 bits instead of k: (P, page bytes) bytes
  at::Tensor open;         // int4: (B, 64, Dk), the last S % 64 tokens of each sequence
  at::Tensor block_table;  // paged: (B, pages of the longest) int32
  at::Tensor lengths;      // (B) int32
  at::Tensor value_map;    // (H, Dv, R) with v_head_dim
  std::vector<int32_t> host_lengths;

  bool paged() const { return block_table.defined(); }
};

/// `copies` independent inputs of one layout in `type`. Below 16 bits: paged.
std::vector<DecodeInputs> make_inputs(const DecodeCase& decode, int64_t copies, bool paged, at::ScalarType type,
                                      at::Device device);

/// softmax(q k^T / sqrt(Dk)) v of one sequence, through the value map where there is one: (heads, width) fp64, of the
/// query heads named.
at::Tensor reference_heads(const DecodeCase& decode, const DecodeInputs& inputs, int64_t sequence,
                           const std::vector<int64_t>& heads);

/// The fp64 results of up to four heads of up to three sequences, which results are compared with.
class DecodeReference {
 public:
  DecodeReference(const DecodeCase& decode, const DecodeInputs& inputs);
  /// Largest relative Frobenius error of `out` (B, H, width) over the sequences; infinite where any number of `out` is
  /// not finite.
  double error_of(const at::Tensor& out) const;

 private:
  std::vector<int64_t> heads_, sequences_;
  std::vector<at::Tensor> want_;  // of each sequence, (heads, width)
};

}  // namespace cinch
