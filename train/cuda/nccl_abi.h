// The function that libcinch_nccl.so has. Both sides are built with the same LibTorch.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>

/// NCCL between `world` processes that meet in `store`. Throws what c10d throws.
extern "C" void cinch_nccl_group(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world,
                                 std::chrono::seconds timeout, c10::intrusive_ptr<c10d::Backend>* group);
