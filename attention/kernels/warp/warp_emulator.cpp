#include "attention/kernels/warp/warp_emulator.h"

#include <ucontext.h>

#include <array>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace cinch::warp::emulator {
namespace {

constexpr int kLanes = 32;
constexpr int kBarriers = 16;
constexpr size_t kStack = 128 << 10;

struct Copy {
  uint32_t to;
  const void* from;  // null: zeros
};

/// One lane's call of a collective operation: what it is, and its own arguments.
struct Call {
  void (*apply)(void* const* arguments);
  void* arguments;
};

struct Fibre {
  ucontext_t context;
  Call call{};
  int waits_for = -1;  // barrier; kLanes and more: its warp
  bool runnable = true, done = false;
  std::vector<std::vector<Copy>> groups;  // committed
  std::vector<Copy> open;
};

struct Barrier {
  int arrived = 0, expected = 0;
};

class Machine {
 public:
  Machine(const Block& block, const std::function<void(int)>& body)
      : block_(block), body_(body), memory_(block.shared_bytes, 0xff), fibres_(static_cast<size_t>(block.threads)) {
    if (block.threads <= 0 || block.threads % kLanes != 0) throw std::runtime_error("threads must be whole warps");
  }

  void run();
  void switch_out() { swapcontext(&fibres_[current_].context, &scheduler_); }
  Fibre& fibre() { return fibres_[current_]; }
  size_t thread() const { return current_; }
  int threads() const { return block_.threads; }
  std::vector<uint8_t>& memory() { return memory_; }

  void collective(void (*apply)(void* const*), void* arguments);
  void sync(int id, int threads);

 private:
  static void enter();
  void run_warp(size_t warp);
  void resume(size_t thread);

  Block block_;
  const std::function<void(int)>& body_;
  std::vector<uint8_t> memory_;
  std::vector<Fibre> fibres_;
  std::array<Barrier, kBarriers> barriers_{};
  ucontext_t scheduler_{};
  size_t current_ = 0;
  std::exception_ptr fault_;
};

thread_local Machine* machine = nullptr;

/// Stacks of all fibres, kept between runs.
uint8_t* stacks(size_t threads) {
  thread_local std::unique_ptr<uint8_t[]> memory;
  thread_local size_t held = 0;
  if (held < threads) {
    memory.reset(new uint8_t[threads * kStack]);
    held = threads;
  }
  return memory.get();
}

void Machine::enter() {
  Machine& self = *machine;
  try {
    self.body_(static_cast<int>(self.current_));
  } catch (...) {
    if (!self.fault_) self.fault_ = std::current_exception();
  }
  self.fibre().done = true;
  self.fibre().runnable = false;
}

void Machine::resume(size_t thread) {
  current_ = thread;
  swapcontext(&scheduler_, &fibres_[thread].context);
  if (fault_) std::rethrow_exception(fault_);
}

void Machine::run_warp(size_t warp) {
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t thread = warp * kLanes + lane;
      if (!fibres_[thread].runnable) continue;
      resume(thread);
      moved = true;
    }
  }
}

void Machine::run() {
  uint8_t* const stack = stacks(fibres_.size());
  for (size_t i = 0; i < fibres_.size(); ++i) {
    getcontext(&fibres_[i].context);
    fibres_[i].context.uc_stack.ss_sp = stack + i * kStack;
    fibres_[i].context.uc_stack.ss_size = kStack;
    fibres_[i].context.uc_link = &scheduler_;
    makecontext(&fibres_[i].context, &Machine::enter, 0);
  }
  const size_t warps = fibres_.size() / kLanes;
  for (;;) {
    bool any_runnable = false, all_done = true;
    for (size_t i = 0; i < warps; ++i) {
      const size_t warp = block_.last_warp_first ? warps - 1 - i : i;
      for (size_t lane = 0; lane < kLanes; ++lane) any_runnable |= fibres_[warp * kLanes + lane].runnable;
      run_warp(warp);
      for (size_t lane = 0; lane < kLanes; ++lane) all_done &= fibres_[warp * kLanes + lane].done;
    }
    if (all_done) return;
    if (!any_runnable) throw std::runtime_error("threads wait for others that never come");
  }
}

void Machine::collective(void (*apply)(void* const*), void* arguments) {
  const size_t first = current_ / kLanes * kLanes;
  Fibre& own = fibre();
  own.call = {apply, arguments};
  own.waits_for = kBarriers;
  int arrived = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) arrived += fibres_[first + lane].waits_for == kBarriers ? 1 : 0;
  if (arrived < kLanes) {
    own.runnable = false;
    switch_out();
    return;
  }
  std::array<void*, kLanes> all{};
  for (size_t lane = 0; lane < kLanes; ++lane) {
    Fibre& other = fibres_[first + lane];
    if (other.call.apply != apply) throw std::runtime_error("lanes of a warp meet in different operations");
    all[lane] = other.call.arguments;
  }
  apply(all.data());
  for (size_t lane = 0; lane < kLanes; ++lane) {
    fibres_[first + lane].waits_for = -1;
    fibres_[first + lane].runnable = true;
  }
}

void Machine::sync(int id, int threads) {
  if (id < 0 || id >= kBarriers) throw std::runtime_error("no barrier " + std::to_string(id));
  Barrier& barrier = barriers_[static_cast<size_t>(id)];
  if (barrier.arrived > 0 && barrier.expected != threads)
    throw std::runtime_error("barrier " + std::to_string(id) + " joins different numbers of threads");
  barrier.expected = threads;
  fibre().waits_for = id;
  if (++barrier.arrived < threads) {
    fibre().runnable = false;
    switch_out();
    return;
  }
  barrier.arrived = 0;
  for (Fibre& other : fibres_) {
    if (other.waits_for != id) continue;
    other.waits_for = -1;
    other.runnable = true;
  }
}

void perform(const Copy& copy) {
  void* const to = shared_bytes(copy.to, 16);
  if (copy.from != nullptr) {
    std::memcpy(to, copy.from, 16);
  } else {
    std::memset(to, 0, 16);
  }
}

}  // namespace

void run(const Block& block, const std::function<void(int)>& body) {
  Machine own(block, body);
  Machine* const outer = machine;
  machine = &own;
  try {
    own.run();
  } catch (...) {
    machine = outer;
    throw;
  }
  machine = outer;
}

int lane() { return static_cast<int>(machine->thread() % kLanes); }
int threads() { return machine->threads(); }
void sync(int id, int threads) { machine->sync(id, threads); }

const void* checked(const void* address, size_t size) {
  if (reinterpret_cast<uintptr_t>(address) % size != 0) throw std::runtime_error("misaligned address");
  return address;
}

void* shared_bytes(uint32_t address, size_t size) {
  std::vector<uint8_t>& memory = machine->memory();
  if (address % size != 0) throw std::runtime_error("misaligned shared address " + std::to_string(address));
  if (address + size > memory.size()) {
    throw std::runtime_error("shared address " + std::to_string(address) + " is beyond " +
                             std::to_string(memory.size()) + " bytes");
  }
  return memory.data() + address;
}

float shuffle(float value, int from) {
  struct Arguments {
    float value;
    int from;
    float result;
  } own{value, from, 0};
  machine->collective(
      [](void* const* all) {
        for (int i = 0; i < kLanes; ++i) {
          auto* const mine = static_cast<Arguments*>(all[i]);
          if (mine->from < 0 || mine->from >= kLanes) throw std::runtime_error("shuffle from no lane");
          mine->result = static_cast<Arguments*>(all[mine->from])->value;
        }
      },
      &own);
  return own.result;
}

bool any(bool value) {
  struct Arguments {
    bool value, result;
  } own{value, false};
  machine->collective(
      [](void* const* all) {
        bool result = false;
        for (int i = 0; i < kLanes; ++i) result |= static_cast<Arguments*>(all[i])->value;
        for (int i = 0; i < kLanes; ++i) static_cast<Arguments*>(all[i])->result = result;
      },
      &own);
  return own.result;
}

void load_matrices(uint32_t (&to)[4], uint32_t row, bool transposed) {
  struct Arguments {
    uint32_t* to;
    uint32_t row;
    bool transposed;
  } own{to, row, transposed};
  machine->collective(
      [](void* const* all) {
        for (int m = 0; m < 4; ++m) {
          uint16_t matrix[8][8];
          for (int r = 0; r < 8; ++r)
            std::memcpy(matrix[r], shared_bytes(static_cast<Arguments*>(all[8 * m + r])->row, 16), 16);
          for (int i = 0; i < kLanes; ++i) {
            auto* const mine = static_cast<Arguments*>(all[i]);
            const int r = i / 4, c = 2 * (i % 4);
            const uint32_t low = mine->transposed ? matrix[c][r] : matrix[r][c];
            const uint32_t high = mine->transposed ? matrix[c + 1][r] : matrix[r][c + 1];
            mine->to[m] = low | high << 16;
          }
        }
      },
      &own);
}

void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (*to_float)(uint16_t)) {
  struct Arguments {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
    float (*to_float)(uint16_t);
  } own{d, a, {b0, b1}, to_float};
  machine->collective(
      [](void* const* all) {
        float left[16][16], right[16][8];
        for (int i = 0; i < kLanes; ++i) {
          const auto* const mine = static_cast<Arguments*>(all[i]);
          const int r = i / 4, c = 2 * (i % 4);
          for (int j = 0; j < 2; ++j) {
            const auto half = [&](uint32_t word) { return mine->to_float(static_cast<uint16_t>(word >> (16 * j))); };
            left[r][c + j] = half(mine->a[0]);
            left[r + 8][c + j] = half(mine->a[1]);
            left[r][c + 8 + j] = half(mine->a[2]);
            left[r + 8][c + 8 + j] = half(mine->a[3]);
            right[c + j][r] = half(mine->b[0]);
            right[c + 8 + j][r] = half(mine->b[1]);
          }
        }
        for (int i = 0; i < kLanes; ++i) {
          float* const result = static_cast<Arguments*>(all[i])->d;
          for (int j = 0; j < 4; ++j) {
            const int r = i / 4 + (j >= 2 ? 8 : 0), c = 2 * (i % 4) + (j & 1);
            double sum = result[j];
            for (int k = 0; k < 16; ++k) sum += static_cast<double>(left[r][k]) * static_cast<double>(right[k][c]);
            result[j] = static_cast<float>(sum);
          }
        }
      },
      &own);
}

void copy_async(uint32_t to, const void* from, bool valid) {
  std::memset(shared_bytes(to, 16), 0xff, 16);
  machine->fibre().open.push_back({to, valid ? from : nullptr});
}

void copy_commit() {
  Fibre& own = machine->fibre();
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}

void copy_wait(int pending) {
  auto& groups = machine->fibre().groups;
  while (groups.size() > static_cast<size_t>(pending)) {
    for (const Copy& copy : groups.front()) perform(copy);
    groups.erase(groups.begin());
  }
}

}  // namespace cinch::warp::emulator
