// Runs the code of a thread block on the CPU: every thread is a fibre of its own, and the collective operations of a
// warp wait for its 32 lanes. It is stricter than a device where that finds faults: shared memory and the targets of
// copies under way hold NaN, background copies happen at the last moment that is allowed, a warp runs as far ahead of
// the others as barriers let it (in both orders), every shared access is checked, and lanes that meet in different
// operations or in none are an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace cinch::warp::emulator {

struct Block {
  int threads = 128;
  size_t shared_bytes = 0;
  bool last_warp_first = false;
};
/// Runs `body(thread)` of all threads. Throws std::runtime_error on faults, naming them.
void run(const Block& block, const std::function<void(int)>& body);

// Within `run`:
int lane();
int threads();
float shuffle(float value, int from);
bool any(bool value);
void load_matrices(uint32_t (&to)[4], uint32_t row, bool transposed);
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (*to_float)(uint16_t));
void copy_async(uint32_t to, const void* from, bool valid);
void copy_commit();
void copy_wait(int pending);
void sync(int id, int threads);
/// An address in global memory that must be a multiple of `size`.
const void* checked(const void* address, size_t size);
/// Checked address in shared memory.
void* shared_bytes(uint32_t address, size_t size);
template <class V>
V& shared(uint32_t address) {
  return *static_cast<V*>(shared_bytes(address, sizeof(V)));
}

}  // namespace cinch::warp::emulator
