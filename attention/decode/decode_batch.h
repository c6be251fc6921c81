// What the layers of a decode session share: how many tokens each sequence has, block tables, split plans, rotary
// tables and scratch memory, all on the device and made once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "attention/kernels/decode/decode_functions.h"
#include "attention/rope.h"

namespace cinch {

class DecodeBatch {
 public:
  struct Sizes {
    int64_t sequences = 1;      // B
    int64_t max_tokens = 0;     // of one sequence
    int64_t prefill_chunk = 0;  // tokens that come at once at most
    at::ScalarType dtype = at::kFloat;
    at::Device device = at::kCPU;
  };
  /// `functions` may be null: no kernels.
  DecodeBatch(const Sizes& sizes, const DecodeFunctions* functions);

  const Sizes& sizes() const { return sizes_; }
  const DecodeFunctions* functions() const { return functions_; }
  void* stream() const;  // a cudaStream_t; null on the CPU

  const at::Tensor& lengths() const { return lengths_; }  // (B) int32 on the device
  const std::vector<int64_t>& host_lengths() const { return host_lengths_; }
  /// On both sides.
  void set_length(int64_t sequence, int64_t tokens);
  /// One token more in every sequence: on the device, where a graph may record it; and on the host.
  void count_on_device();
  void count_on_host();

  /// Pages that a sequence needs: of all its tokens, or with a window of those that a chunk's queries can see.
  int64_t pages_per_sequence(int64_t window) const;
  /// (B, pages of max_tokens) int32: sequence b's page p is page b * pages + p % pages of a pool of B * pages, for
  /// pages = pages_per_sequence(window).
  const at::Tensor& block_table(int64_t window);

  /// Memory for the plan of such steps; the same for equal parts and windows.
  const int32_t* plan(const CinchDecodeSizes& sizes, int64_t window);
  /// Makes all plans from the lengths on the device.
  void make_plans();
  /// At least so many bytes, zeroed; one for all layers. Pointers from before a call that asks for more are void.
  void reserve_scratch(uint64_t bytes);
  void* scratch() const;

  /// fp32 cos and sin of all positions, times `scaling`: (max_tokens, planes), shared by equal frequencies.
  const RotaryTable& rotary(const std::vector<double>& inv_freq, double scaling);

  /// Throws ResourceError with the reason when `status` is not 0. For functions of DecodeFunctions.
  void check(int32_t status, const char* function, const char* reason) const;

 private:
  struct Plan {
    int32_t parts = 0;
    int64_t window = 0;
    at::Tensor memory;  // int32
  };

  Sizes sizes_;
  const DecodeFunctions* functions_;
  at::Tensor lengths_, scratch_;
  std::vector<int64_t> host_lengths_;
  std::map<int64_t, at::Tensor> tables_;  // by pages per sequence
  std::vector<Plan> plans_;
  std::map<std::pair<std::vector<double>, double>, RotaryTable> rotary_;
};

}  // namespace cinch
