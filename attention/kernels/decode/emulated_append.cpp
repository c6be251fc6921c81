#include <array>
#include <stdexcept>

#include "attention/kernels/decode/append_block.h"
#include "attention/kernels/decode/emulated_decode.h"

namespace cinch::decode {
namespace {

struct RunAppend {
  const AppendJob& job;
  bool last_warp_first;

  template <class T, int kPages>
  int visit() const {
    const emulator::Block shape{kAppendThreads, static_cast<size_t>(job.shared_bytes), last_warp_first};
    for (int64_t i = 0; i < job.blocks; ++i) {
      const int block = static_cast<int>(last_warp_first ? job.blocks - 1 - i : i);
      const auto body = [&](int thread) { append_block<T, kPages>(job, block, thread); };
      if (block < job.row_blocks) {  // no thread waits for another
        for (int thread = 0; thread < kAppendThreads; ++thread) body(thread);
      } else {
        emulator::run(shape, body);
      }
    }
    return 0;
  }
};

}  // namespace

void run_emulated(const CinchCacheAppend& append, bool last_warp_first) {
  AppendJob job{};
  std::array<char, 256> error{};
  if (!make_append_job(append, job, error.data(), error.size())) throw std::runtime_error(error.data());
  visit_append(append, RunAppend{job, last_warp_first});
}

}  // namespace cinch::decode
