// What the files of the prefill kernels' device program share.
#pragma once

#include "attention/kernels/prefill/prefill_abi.h"
#include "tests/attention/cuda/device_program.h"

namespace cinch::prefill {

using decode::check_status;
using decode::DeviceMemory;

/// Prints the table of prefill_device_bench.cu. Returns 0.
int run_prefill_benchmark();

}  // namespace cinch::prefill
