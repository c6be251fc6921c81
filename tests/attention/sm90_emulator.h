// One thread block of sm_90 on the CPU, as LatentDecodeBlock sees the GPU: every CUDA thread is a fiber. TMA copies
// late and in any order, wgmma reads shared memory at its commit or only at its wait, warps run at random pace: what
// a missing barrier would break on the GPU breaks here. Also reported: waits that never end, barriers with too many
// arrivals, and ordinary writes that TMA or wgmma meet without a fence.proxy.async.
// Rules from PTX ISA 9.0: matrix descriptor, canonical layouts and fragments of wgmma; tensor swizzling modes; phases
// of mbarrier. Written from those rules, not from sm90_layout.h.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/warp/numbers.h"

namespace cinch::sm90 {

class EmulatedBlock;

class Emulator {
 public:
  struct TensorMap {
    const void* data;
    int64_t size[3];     // columns, rows, blocks; numbers outside are read as 0
    int64_t strides[3];  // bytes
    int box_rows;
  };
  struct Chunk {
    uint32_t v[4];
  };

  Emulator(EmulatedBlock& block, int thread) : block_(block), thread_(thread) {}

  int thread() const { return thread_; }
  int warpgroup() const { return thread_ / 128; }
  int block_x() const;
  int block_y() const;
  uint32_t shared_base() const;
  template <int kCount>
  void give_registers() {}
  template <int kCount>
  void take_registers() {}

  void launch_dependents() {}

  void barrier_init(uint32_t barrier, int arrivals);
  void fence_barrier_init() {}
  void barrier_arrive(uint32_t barrier);
  void barrier_expect(uint32_t barrier, uint32_t bytes);
  void barrier_wait(uint32_t barrier, uint32_t parity);
  void fence_async_proxy();
  void sync_block();
  void sync_warp();
  void sync_group(int barrier, int threads);

  void load_box(uint32_t shared, const TensorMap* map, uint32_t barrier, int column, int row, int block);
  void store_shared(uint32_t address, Chunk v) { write(address, &v, 16); }
  void store_shared(uint32_t address, float a, float b) {
    const float v[2] = {a, b};
    write(address, v, 8);
  }
  Chunk load_shared(uint32_t address) {
    Chunk v;
    read(address, &v, 16);
    return v;
  }
  void load_shared(uint32_t address, float& a, float& b) {
    float v[2];
    read(address, v, 8);
    a = v[0], b = v[1];
  }
  template <class V>
  static Chunk chunk_of(const V* v) {
    Chunk chunk;
    std::memcpy(&chunk, v, 16);
    return chunk;
  }
  template <class V>
  static void take_chunk(Chunk chunk, V* v) {
    std::memcpy(v, &chunk, 16);
  }
  template <class T>
  static void store_pair(uint16_t* to, float a, float b) {
    to[0] = T::from_float(a), to[1] = T::from_float(b);
  }
  static void store_pair(float* to, float a, float b) { to[0] = a, to[1] = b; }

  int from_lane(int v, int lane);
  float from_lane(float v, int lane) {
    int bits;
    std::memcpy(&bits, &v, 4);
    bits = from_lane(bits, lane);
    std::memcpy(&v, &bits, 4);
    return v;
  }
  float from_lane_xor(float v, int mask);

  static float max(float a, float b) { return std::fmax(a, b); }
  static float tanh(float x) { return std::tanh(x); }
  static float log2(float x) { return std::log2(x); }
  static float exp2(float x) { return std::exp2(x); }
  template <class T>
  static uint32_t pack(float low, float high) {
    return T::from_float(low) | static_cast<uint32_t>(T::from_float(high)) << 16;
  }

  template <class V, int kCount>
  void hold(V (&)[kCount]) {}
  template <int kCount>
  void wgmma_fence(float (&)[kCount]) {}
  void wgmma_commit();
  template <int kCount>
  void wgmma_wait(float (&)[kCount]) {
    wait_for_products();
  }
  template <class T, int kCount>
  void multiply_shared(float (&d)[kCount], uint64_t a, uint64_t b, bool add) {
    issue(Product{true, add, T::to_float, 2 * kCount, d, {}, a, b});
  }
  template <class T, int kCount>
  void multiply_registers(float (&d)[kCount], const uint32_t* a, uint64_t b) {
    issue(Product{false, true, T::to_float, 2 * kCount, d, {a[0], a[1], a[2], a[3]}, 0, b});
  }

 private:
  friend class EmulatedBlock;
  struct Product {
    bool a_in_shared, add;
    float (*to_float)(uint16_t);
    int n;
    float* d;
    uint32_t registers[4];
    uint64_t a, b;
  };

  void write(uint32_t address, const void* from, int bytes);
  void read(uint32_t address, void* to, int bytes);
  void issue(const Product& product) { products_.push_back(product); }
  void wait_for_products();
  void run_products();
  void multiply(const Product& product, size_t index);
  float element(uint64_t descriptor, bool mn_major, int mn, int k, float (*to_float)(uint16_t));

  EmulatedBlock& block_;
  const int thread_;
  std::vector<Product> products_;
  bool committed_ = false;
};

/// Runs `body` once per thread of a block.
class EmulatedBlock {
 public:
  struct Place {
    int block_x, block_y;
  };
  static constexpr uint32_t kBase = 1024;  // not 0: offsets that forget the base show

  EmulatedBlock(Place place, int threads, uint32_t shared_bytes, uint64_t seed)
      : place_(place),
        random_(seed),
        late_(seed % 2 == 1),
        shared_(shared_bytes + kBase, 0xff),
        writer_(shared_.size() / 16, -1) {
    for (int i = 0; i < threads; ++i) fibers_.push_back(std::make_unique<Fiber>(*this, i));
  }

  /// Empty, or what went wrong.
  std::string run(const std::function<void(Emulator&)>& body) {
    body_ = &body;
    for (auto& fiber : fibers_) {
      getcontext(&fiber->context);
      fiber->context.uc_stack = {fiber->stack.data(), 0, fiber->stack.size()};
      fiber->context.uc_link = nullptr;
      const auto self = reinterpret_cast<uintptr_t>(this);
      makecontext(&fiber->context, reinterpret_cast<void (*)()>(&EmulatedBlock::start), 3, static_cast<uint32_t>(self),
                  static_cast<uint32_t>(self >> 32), fiber->machine.thread_);
    }
    std::vector<size_t> warps(fibers_.size() / 32);
    for (size_t i = 0; i < warps.size(); ++i) warps[i] = i;
    std::vector<unsigned> pace(warps.size(), 1);  // a warp runs in one of so many rounds
    bool everyone = false;
    for (size_t round = 0, done = 0; failure_.empty() && done < fibers_.size(); ++round) {
      if (round % 64 == 0) {
        for (unsigned& p : pace) p = 1u << random_() % 6;
      }
      progress_ = false;
      done = 0;
      std::shuffle(warps.begin(), warps.end(), random_);
      for (const size_t warp : warps) {
        const bool runs = everyone || random_() % pace[warp] == 0;
        const bool all_lanes = everyone || random_() % 4 != 0;
        for (size_t i = 32 * warp; i < 32 * warp + 32 && failure_.empty(); ++i) {
          if (!fibers_[i]->done && runs && (all_lanes || random_() % 2 == 0)) resume(i);
          done += fibers_[i]->done ? 1 : 0;
        }
        copy_some();
      }
      if (!progress_ && everyone && done < fibers_.size()) fail("all threads wait: " + waiting());
      everyone = !progress_;
    }
    if (failure_.empty() && !copies_.empty()) fail("TMA copies are left at the end");
    return failure_;
  }

 private:
  friend class Emulator;

  struct Fiber {
    Fiber(EmulatedBlock& block, int thread) : machine(block, thread), stack(size_t{128} << 10) {}
    Emulator machine;
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    std::string waits;
  };
  struct Barrier {
    int arrivals = 0, pending = 0;
    int64_t bytes = 0;
    uint32_t phase = 0;
  };
  struct Meeting {  // of a warp, a named barrier or the block
    int arrived = 0;
    uint64_t generation = 0;
  };
  struct Copy {
    uint32_t shared;
    const Emulator::TensorMap* map;
    uint32_t barrier;
    int column, row, block;
  };

  static void start(uint32_t low, uint32_t high, int thread) {
    auto* self = reinterpret_cast<EmulatedBlock*>(static_cast<uintptr_t>(low) | static_cast<uintptr_t>(high) << 32);
    Fiber& fiber = *self->fibers_[static_cast<size_t>(thread)];
    (*self->body_)(fiber.machine);
    fiber.done = true;
    self->progress_ = true;
    swapcontext(&fiber.context, &self->scheduler_);
  }
  void resume(size_t i) { swapcontext(&scheduler_, &fibers_[i]->context); }
  void yield(int thread) { swapcontext(&fibers_[static_cast<size_t>(thread)]->context, &scheduler_); }

  /// Lets others run until `ready`.
  template <class F>
  void wait_until(int thread, const char* what, uint32_t which, F ready) {
    Fiber& fiber = *fibers_[static_cast<size_t>(thread)];
    if (!ready()) {
      fiber.waits = what + std::to_string(which);
      while (!ready()) yield(thread);
      fiber.waits.clear();
    }
    progress_ = true;
  }
  void meet(int thread, const char* what, uint32_t which, Meeting& meeting, int count) {
    const uint64_t generation = meeting.generation;
    if (++meeting.arrived == count) {
      meeting.arrived = 0;
      ++meeting.generation;
    }
    wait_until(thread, what, which, [&] { return meeting.generation != generation; });
  }
  void fail(const std::string& what) {
    if (failure_.empty()) failure_ = what;
  }
  std::string waiting() const {
    std::string text;
    for (size_t i = 0; i < fibers_.size(); i += 32) {
      if (!fibers_[i]->done) text += "\n  thread " + std::to_string(i) + ": " + fibers_[i]->waits;
    }
    return text;
  }

  Barrier& barrier(uint32_t address) {
    const auto found = barriers_.find(address);
    if (found == barriers_.end()) fail("no barrier at " + std::to_string(address));
    return found == barriers_.end() ? barriers_[address] : found->second;
  }
  void arrive(uint32_t address, int arrivals, int64_t bytes) {
    Barrier& b = barrier(address);
    b.pending -= arrivals;
    b.bytes += bytes;
    if (b.pending < 0) fail("too many arrivals at barrier " + std::to_string(address));
    if (b.pending == 0 && b.bytes == 0) {
      b.pending = b.arrivals;
      ++b.phase;
    }
    progress_ = true;
  }
  void copy_some() {
    while (!copies_.empty() && random_() % 3 == 0) {
      const size_t i = random_() % copies_.size();
      const Copy copy = copies_[i];
      copies_.erase(copies_.begin() + static_cast<std::ptrdiff_t>(i));
      perform(copy);
    }
    if (!copies_.empty()) progress_ = true;
  }
  void perform(const Copy& copy) {
    for (int r = 0; r < copy.map->box_rows; ++r) {
      for (int c = 0; c < 64; ++c) {
        const int64_t at[3] = {copy.column + c, copy.row + r, copy.block};
        bool inside = true;
        int64_t offset = 0;
        for (int i = 0; i < 3; ++i) {
          inside = inside && at[i] >= 0 && at[i] < copy.map->size[i];
          offset += at[i] * copy.map->strides[i];
        }
        uint16_t value = 0;
        if (inside) std::memcpy(&value, static_cast<const char*>(copy.map->data) + offset, 2);
        // 128-byte swizzle: chunk of 16 bytes in its row, exclusive or with the row in 8.
        const uint32_t address = copy.shared + static_cast<uint32_t>(r * 128 + ((c / 8) ^ (r % 8)) * 16 + c % 8 * 2);
        check_async(address, "TMA writes");
        std::memcpy(&shared_[address], &value, 2);
      }
    }
    arrive(copy.barrier, 0, -int64_t{copy.map->box_rows} * 128);
  }
  void check_async(uint32_t address, const char* what) {
    if (address + 2 > shared_.size()) return fail(std::string(what) + " outside of shared memory");
    if (writer_[address / 16] >= 0) {
      fail(std::string(what) + " what thread " + std::to_string(writer_[address / 16]) +
           " wrote, without a proxy fence");
    }
  }

  const Place place_;
  std::mt19937_64 random_;
  const bool late_;  // wgmma runs at its wait
  std::vector<uint8_t> shared_;
  std::vector<int> writer_;  // per 16 bytes: the thread whose ordinary write has not been fenced, or -1
  std::vector<std::unique_ptr<Fiber>> fibers_;
  ucontext_t scheduler_;
  const std::function<void(Emulator&)>* body_ = nullptr;
  std::map<uint32_t, Barrier> barriers_;
  std::map<int, Meeting> warps_, groups_;
  std::map<int, std::vector<uint32_t>> lanes_;
  std::vector<Copy> copies_;
  bool progress_ = false;
  std::string failure_;
};

inline int Emulator::block_x() const { return block_.place_.block_x; }
inline int Emulator::block_y() const { return block_.place_.block_y; }
inline uint32_t Emulator::shared_base() const { return EmulatedBlock::kBase; }

inline void Emulator::barrier_init(uint32_t barrier, int arrivals) {
  block_.barriers_[barrier] = {arrivals, arrivals, 0, 0};
}
inline void Emulator::barrier_arrive(uint32_t barrier) { block_.arrive(barrier, 1, 0); }
inline void Emulator::barrier_expect(uint32_t barrier, uint32_t bytes) { block_.arrive(barrier, 1, bytes); }
inline void Emulator::barrier_wait(uint32_t barrier, uint32_t parity) {
  block_.wait_until(thread_, "barrier ", barrier, [&] { return (block_.barrier(barrier).phase & 1) != parity; });
}
inline void Emulator::fence_async_proxy() {
  for (int& writer : block_.writer_) {
    if (writer == thread_) writer = -1;
  }
}
inline void Emulator::sync_block() {
  block_.meet(thread_, "block ", 0, block_.groups_[-1], static_cast<int>(block_.fibers_.size()));
}
inline void Emulator::sync_warp() {
  block_.meet(thread_, "warp ", static_cast<uint32_t>(thread_ / 32), block_.warps_[thread_ / 32], 32);
}
inline void Emulator::sync_group(int barrier, int threads) {
  block_.meet(thread_, "group ", static_cast<uint32_t>(barrier), block_.groups_[barrier], threads);
}
inline void Emulator::load_box(uint32_t shared, const TensorMap* map, uint32_t barrier, int column, int row,
                               int block) {
  if (shared % 1024 != 0) block_.fail("TMA destination " + std::to_string(shared) + " is not a multiple of 1024");
  block_.copies_.push_back({shared, map, barrier, column, row, block});
}
inline void Emulator::write(uint32_t address, const void* from, int bytes) {
  if (address + static_cast<uint32_t>(bytes) > block_.shared_.size())
    return block_.fail("write outside of shared memory");
  std::memcpy(&block_.shared_[address], from, static_cast<size_t>(bytes));
  block_.writer_[address / 16] = thread_;
}
inline void Emulator::read(uint32_t address, void* to, int bytes) {
  if (address + static_cast<uint32_t>(bytes) > block_.shared_.size())
    return block_.fail("read outside of shared memory");
  std::memcpy(to, &block_.shared_[address], static_cast<size_t>(bytes));
}
inline int Emulator::from_lane(int v, int lane) {
  auto& lanes = block_.lanes_[thread_ / 32];
  lanes.resize(32);
  std::memcpy(&lanes[static_cast<size_t>(thread_ % 32)], &v, 4);
  sync_warp();
  std::memcpy(&v, &lanes[static_cast<size_t>(lane)], 4);
  sync_warp();
  return v;
}
inline float Emulator::from_lane_xor(float v, int mask) { return from_lane(v, thread_ % 32 ^ mask); }

inline void Emulator::wgmma_commit() {
  committed_ = true;
  if (!block_.late_) run_products();
}
inline void Emulator::wait_for_products() {
  if (!committed_) block_.fail("wgmma without a commit");
  if (block_.late_) run_products();
  committed_ = false;
}
inline void Emulator::run_products() {
  sync_warp();  // the other lanes' registers are there
  for (size_t i = 0; i < products_.size(); ++i) multiply(products_[i], i);
  sync_warp();
  products_.clear();
}

/// Element (mn, k) of an operand in shared memory. Linear addresses by the canonical layouts of the 128-byte swizzle,
/// K-major ((8, m), (T, 2k)) : ((8T, SBO), (1, T)), MN-major ((T, 8, m), (8, k)) : ((1, T, LBO), (8T, SBO)) with T = 8
/// elements; then Swizzle<3, 4, 3> on the address.
inline float Emulator::element(uint64_t descriptor, bool mn_major, int mn, int k, float (*to_float)(uint16_t)) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) * 16;
  const uint32_t leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) * 16;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) * 16;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) block_.fail("descriptor without the 128-byte swizzle");
  uint32_t address = start;
  if (mn_major) {
    address += static_cast<uint32_t>(mn % 64 * 2) + static_cast<uint32_t>(mn / 64) * leading +
               static_cast<uint32_t>(k % 8 * 128) + static_cast<uint32_t>(k / 8) * stride;
  } else {
    address +=
        static_cast<uint32_t>(mn % 8 * 128) + static_cast<uint32_t>(mn / 8) * stride + static_cast<uint32_t>(k * 2);
  }
  address ^= (address >> 7 & 7) << 4;
  block_.check_async(address, "wgmma reads");
  uint16_t bits;
  std::memcpy(&bits, &block_.shared_[address], 2);
  return to_float(bits);
}

/// Registers of D: d[4j + 2i + e] is row 16 warp + lane / 4 + 8 i, column 8j + lane % 4 * 2 + e. Of A: register 2h + i
/// holds row lane / 4 + 8 i, columns 8h + lane % 4 * 2 and the next.
inline void Emulator::multiply(const Product& product, size_t index) {
  const int lane = thread_ % 32, warp = thread_ / 32 % 4;
  for (int i = 0; i < 2; ++i) {
    const int row = 16 * warp + lane / 4 + 8 * i;
    float a[16];
    for (int k = 0; k < 16; ++k) {
      if (product.a_in_shared) {
        a[k] = element(product.a, false, row, k, product.to_float);
      } else {
        const int owner = thread_ - lane + lane / 4 * 4 + k % 8 / 2;
        const Product& other = block_.fibers_[static_cast<size_t>(owner)]->machine.products_[index];
        const uint16_t bits = static_cast<uint16_t>(other.registers[k / 8 * 2 + i] >> (16 * (k % 2)));
        a[k] = product.to_float(bits);
      }
    }
    for (int j = 0; j < product.n / 8; ++j) {
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * j + lane % 4 * 2 + e;
        double sum = 0;
        for (int k = 0; k < 16; ++k)
          sum += double{a[k]} * element(product.b, !product.a_in_shared, column, k, product.to_float);
        float& d = product.d[4 * j + 2 * i + e];
        d = static_cast<float>(sum + (product.add ? double{d} : 0.0));
      }
    }
  }
}

}  // namespace cinch::sm90
