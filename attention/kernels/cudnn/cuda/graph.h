// One plan: cuDNN's graph of a pass of attention, built. The frontend, whose headers take most of a minute to compile,
// is known to graph.cpp alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/kernels/cudnn/cuda/library.h"
#include "attention/kernels/cudnn/cudnn_abi.h"

namespace cinch::cudnn {

class Plan {
 public:
  virtual ~Plan() = default;
  virtual uint64_t workspace_bytes() const = 0;
  /// cuDNN's name of the kernel and its settings.
  virtual std::string engine() const = 0;
  /// On the handle's stream. Throws std::runtime_error. May be called from several threads.
  virtual void run(cudnnHandle_t handle, const CinchCudnnTensors& tensors) const = 0;
  virtual std::vector<uint8_t> save() const = 0;
};

/// `handle`: of the target's device; null with properties. Throws Refused, std::runtime_error.
std::unique_ptr<Plan> build_plan(const CinchCudnnShape& shape, const CinchCudnnTarget& target, cudnnHandle_t handle);
/// Throws std::runtime_error.
std::unique_ptr<Plan> load_plan(const std::vector<uint8_t>& bytes, const CinchCudnnShape& shape, cudnnHandle_t handle);

}  // namespace cinch::cudnn
