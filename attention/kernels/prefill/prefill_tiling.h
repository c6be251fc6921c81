// How the prefill kernels cut their work: which rows and columns a thread block takes, and where they lie in shared
// memory. Padding of odd sizes lives there alone.
//
// The query heads that share a KV head are one problem of T * G rows (G = H / K): row r is token r / G of the group's
// head r % G. So groups of every size fill tiles, read keys once for all their heads, and sum the gradients of keys
// and values over their heads like those over tokens.
#pragma once

#include "attention/kernels/prefill/divider.h"
#include "attention/kernels/prefill/prefill_abi.h"
#include "attention/kernels/warp/device.h"

namespace cinch::prefill {

using warp::Multiprocessor;

constexpr int kTile = 16;       // rows and columns of a fragment
constexpr int kKeyTile = 64;    // keys of a step of the forward
constexpr int kMaxWidth = 256;  // D, Dv
constexpr int kMaxSlots = 4;    // of a ring: copies under way

/// Rows of one KV head's problem.
CINCH_HOST_DEVICE int group_of(const CinchPrefill& work) { return work.n_heads / work.n_kv_heads; }
CINCH_HOST_DEVICE int rows_of(const CinchPrefill& work) { return work.queries * group_of(work); }
/// Units of 16 columns.
CINCH_HOST_DEVICE int units_of(int columns) { return (columns + kTile - 1) / kTile; }

/// Forward: a thread block has `rows` rows, each warp 16 * row_tiles of them with all columns of their results, and
/// takes keys in steps of 64, and their values, from a ring of slots.
struct ForwardTiling {
  int row_tiles, units;  // of the compiled kernel; units: of 16 result columns
  int warps, slots;
  int rows, row_blocks;                                 // of a thread block; of a KV head
  int query_pitch, key_pitch, value_pitch, slot_bytes;  // bytes
  int ring_offset, shared_bytes;
  Divider group;  // G
};

/// Which gradients a backward kernel computes. Keys and values at once where both sums fit into registers.
enum GradientPass { kOfQueries, kOfKeys, kOfValues, kOfKeysAndValues };

/// Backward: a thread block owns rows (for queries) or keys (for keys and values), each warp 16 * own_tiles of them,
/// and streams the others through a ring. In shared memory: own columns of q or k, own columns of d_out or v, own row
/// states; and the same of the streamed side in every slot.
struct GradientTiling {
  int pass, units;  // of the compiled kernel
  int warps, slots;
  int own_rows, own_blocks;    // of a thread block; of a KV head
  int streamed_rows;           // of a slot
  int key_pitch, value_pitch;  // bytes of a row of D columns, and of Dv
  int own_values_offset, own_states_offset, ring_offset;
  int slot_values_offset, slot_states_offset, slot_bytes;
  int shared_bytes;
  Divider group;  // G
};

struct ForwardJob {
  CinchPrefill work;
  ForwardTiling tiling;
};
struct GradientJob {
  CinchPrefill work;
  GradientTiling tiling;
};
/// The passes of a backward, one launch each.
struct GradientPasses {
  int count;
  GradientTiling tilings[3];
};

/// Numbers of the compiled gradient kernels.
constexpr int own_tiles(int pass, int units) { return pass == kOfQueries && units < 16 ? 2 : 1; }
/// Streamed units of 16 that a warp multiplies at once.
constexpr int streamed_tiles(int pass, int units) { return pass == kOfKeysAndValues && units == 4 ? 4 : 2; }
/// Most threads of a block: with many columns few rows fit into a warp's registers, and many warps share what is
/// copied.
constexpr int forward_threads(int row_tiles) { return row_tiles == 1 ? 256 : 128; }
constexpr int gradient_threads(int units) { return units == 16 ? 256 : 128; }

/// False, with the rule that `work` breaks in `error`, when no kernel takes it.
bool check_prefill(const CinchPrefill& work, bool backward, char* error, uint64_t error_size);
/// Of checked work. False where shared memory is too small.
bool choose_forward_tiling(const CinchPrefill& work, const Multiprocessor& processor, ForwardTiling& tiling,
                           char* error, uint64_t error_size);
bool choose_gradient_passes(const CinchPrefill& work, const Multiprocessor& processor, GradientPasses& passes,
                            char* error, uint64_t error_size);

}  // namespace cinch::prefill
