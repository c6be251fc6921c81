// Rotary position embedding, half-split (Hugging Face) convention: plane j of a head pairs dims j and j + rotary_dim/2.
// Frequencies follow transformers' modeling_rope_utils (default, linear, dynamic NTK, YaRN, llama3, longrope).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "attention/attention_spec.h"

namespace cinch {

/// cos and sin of angles, each (count, planes).
struct RotaryTable {
  at::Tensor cos, sin;
};
/// Of position * frequency for positions [first, first + count).
RotaryTable rotary_table(const std::vector<double>& inv_freq, int64_t first, int64_t count, at::ScalarType dtype,
                         at::Device device);

class Rope {
 public:
  /// Throws UnsupportedError on an unknown type and ConfigError on impossible numbers.
  explicit Rope(const RopeSpec& spec);

  /// Frequencies (rotary_dim/2) used for a sequence of `length` tokens; only dynamic and longrope depend on it.
  std::vector<double> inv_freq(int64_t length) const;
  /// Factor on cos and sin (YaRN, longrope); 1 otherwise.
  double attention_scaling() const;

  /// cos and sin, times attention_scaling, for positions [first, first + count) of a sequence whose full length is
  /// `length`: each (count, rotary_dim/2).
  using Table = RotaryTable;
  Table table(int64_t first, int64_t count, int64_t length, at::ScalarType dtype, at::Device device) const;

  /// Rotates x (..., T, D) with the table's T rows; dims beyond rotary_dim pass through. Returns a new tensor.
  static at::Tensor apply(const at::Tensor& x, const Table& table);

  const RopeSpec& spec() const { return spec_; }

 private:
  RopeSpec spec_;
  std::vector<double> short_inv_freq_, long_inv_freq_;  // long: longrope beyond its original length
};

}  // namespace cinch
