// libcinch_nccl.so: the one part of training that needs CUDA's and NCCL's headers. Loaded by train/process_group.cpp
// when processes train on GPUs.
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "train/cuda/nccl_abi.h"

extern "C" void cinch_nccl_group(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world,
                                 std::chrono::seconds timeout, c10::intrusive_ptr<c10d::Backend>* group) {
  const auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  *group = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, world, options);
}
