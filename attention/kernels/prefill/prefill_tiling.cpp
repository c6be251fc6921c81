#include "attention/kernels/prefill/prefill_tiling.h"

#include <stdio.h>

#include <algorithm>
#include <tuple>

namespace cinch::prefill {
namespace {

constexpr int kReservedBytes = 1024;  // of shared memory, per resident thread block
constexpr int kRowStateBytes = 16;
constexpr int64_t kMaxTokens = 1 << 24;
constexpr int64_t kMaxRows = int64_t{1} << 30;

int divide_up(int a, int b) { return (a + b - 1) / b; }
/// Bytes of a row in shared memory: whole units and 16 more, an odd number of 16 bytes, so that ldmatrix meets all
/// banks.
int pitch_of(int columns) { return 32 * units_of(columns) + 16; }

struct Rule {
  bool holds;
  const char* text;
  int64_t found;
};

bool aligned(const CinchPrefillArray& a, int64_t elements) {
  return a.batch_stride % elements == 0 && a.head_stride % elements == 0 && a.token_stride % elements == 0 &&
         reinterpret_cast<uintptr_t>(a.data) % (2 * static_cast<uintptr_t>(elements)) == 0;
}

bool no_room(const CinchPrefill& work, const Multiprocessor& processor, char* error, uint64_t error_size) {
  snprintf(error, error_size, "rows of %d and %d columns do not fit into %d bytes of shared memory", work.head_dim,
           work.v_head_dim, processor.shared_bytes_per_block);
  return false;
}

/// Slots of a ring behind `fixed` bytes, when so many thread blocks are to run on one multiprocessor.
int slots_within(const Multiprocessor& processor, int resident, int fixed, int slot_bytes) {
  const int bytes = std::min(processor.shared_bytes / resident - kReservedBytes, processor.shared_bytes_per_block);
  return bytes < fixed ? 0 : std::min((bytes - fixed) / slot_bytes, kMaxSlots);
}

/// Thread blocks by their warps that are worth a try: registers allow 8 warps on a multiprocessor.
struct Occupancy {
  int warps, resident;
};
constexpr Occupancy kOccupancies[] = {{8, 1}, {4, 2}, {4, 1}, {2, 2}, {2, 1}, {1, 1}};

GradientTiling lay_out(const CinchPrefill& work, int pass, int units, int warps, int streamed_rows) {
  GradientTiling t{};
  t.pass = pass;
  t.units = units;
  t.warps = warps;
  t.group = divider_of(group_of(work));
  t.streamed_rows = streamed_rows;
  t.own_rows = kTile * own_tiles(pass, units) * warps;
  t.own_blocks = divide_up(pass == kOfQueries ? rows_of(work) : work.keys, t.own_rows);
  t.key_pitch = pitch_of(work.head_dim);
  t.value_pitch = pitch_of(work.v_head_dim);
  const bool own_keys = pass != kOfQueries, own_values = pass != kOfValues;
  t.own_values_offset = t.own_rows * t.key_pitch;
  t.own_states_offset = t.own_values_offset + (own_values ? t.own_rows * t.value_pitch : 0);
  t.ring_offset = t.own_states_offset + (own_keys ? 0 : t.own_rows * kRowStateBytes);
  t.slot_values_offset = streamed_rows * t.key_pitch;
  t.slot_states_offset = t.slot_values_offset + streamed_rows * t.value_pitch;
  t.slot_bytes = t.slot_states_offset + (own_keys ? streamed_rows * kRowStateBytes : 0);
  return t;
}

/// As many warps as a multiprocessor can have, then two slots before one, then large thread blocks and slots.
bool choose_pass(const CinchPrefill& work, const Multiprocessor& processor, int pass, int units,
                 GradientTiling& tiling) {
  using Rank = std::tuple<int, int, int, int>;
  Rank best{};
  for (const Occupancy& o : kOccupancies) {
    if (32 * o.warps > gradient_threads(units)) continue;
    for (int rows = 64; rows >= kTile * streamed_tiles(pass, units); rows /= 2) {
      GradientTiling t = lay_out(work, pass, units, o.warps, rows);
      t.slots = std::min(slots_within(processor, o.resident, t.ring_offset, t.slot_bytes), 2);
      t.shared_bytes = t.ring_offset + t.slots * t.slot_bytes;
      const Rank rank{o.warps * o.resident, t.slots, o.warps, rows};
      if (t.slots == 0 || rank <= best) continue;
      best = rank;
      tiling = t;
    }
  }
  return best != Rank{};
}

}  // namespace

bool check_prefill(const CinchPrefill& w, bool backward, char* error, uint64_t error_size) {
  const auto in = [](int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; };
  const int64_t rows = w.n_kv_heads > 0 ? int64_t{w.queries} * (w.n_heads / w.n_kv_heads) : 0;
  const Rule rules[] = {
      {w.type == CINCH_PREFILL_BF16 || w.type == CINCH_PREFILL_FP16, "type must be bf16 or fp16", w.type},
      {in(w.batch, 1, 65536), "batch must be in 1..65536", w.batch},
      {in(w.n_heads, 1, 65536), "n_heads must be in 1..65536", w.n_heads},
      {in(w.n_kv_heads, 1, 65536) && w.n_heads % w.n_kv_heads == 0, "n_kv_heads must divide n_heads", w.n_kv_heads},
      {in(w.queries, 1, kMaxTokens), "queries must be in 1..2^24", w.queries},
      {in(w.keys, 1, kMaxTokens), "keys must be in 1..2^24", w.keys},
      {rows <= kMaxRows, "queries of a KV head must be at most 2^30", rows},
      {in(w.head_dim, 8, kMaxWidth) && w.head_dim % 8 == 0, "head_dim must be a multiple of 8 in 8..256", w.head_dim},
      {in(w.v_head_dim, 8, kMaxWidth) && w.v_head_dim % 8 == 0, "v_head_dim must be a multiple of 8 in 8..256",
       w.v_head_dim},
      {in(w.first_query, -kMaxTokens, kMaxTokens), "first_query must be in -2^24..2^24", w.first_query},
      {in(w.window, 0, int64_t{1} << 30), "window must be in 0..2^30", w.window},
      {w.scale > 0, "scale must be positive", 0},
      {w.softcap >= 0, "softcap must not be negative", 0},
      {aligned(w.q, 8) && aligned(w.k, 8) && aligned(w.v, 8), "q, k, v and their strides must be multiples of 16 bytes",
       0},
      {aligned(w.out, backward ? 8 : 2), "out and its strides must be multiples of 16 bytes, of 4 in the forward", 0},
      {!backward || aligned(w.d_out, 8), "d_out and its strides must be multiples of 16 bytes", 0},
      {!backward || (aligned(w.d_q, 2) && aligned(w.d_k, 2) && aligned(w.d_v, 2)),
       "gradients and their strides must be multiples of 4 bytes", 0},
      {!backward || w.lse != nullptr, "the backward needs lse", 0},
      {!backward || (w.row_states != nullptr && reinterpret_cast<uintptr_t>(w.row_states) % 16 == 0),
       "the backward needs row_states, 16-byte aligned", 0},
  };
  for (const Rule& rule : rules) {
    if (rule.holds) continue;
    snprintf(error, error_size, "%s, found %lld", rule.text, static_cast<long long>(rule.found));
    return false;
  }
  return true;
}

bool choose_forward_tiling(const CinchPrefill& work, const Multiprocessor& processor, ForwardTiling& tiling,
                           char* error, uint64_t error_size) {
  ForwardTiling t{};
  const int units = units_of(work.v_head_dim);
  t.units = units <= 4 ? 4 : units <= 8 ? 8 : 16;
  t.row_tiles = t.units == 16 ? 1 : 2;
  t.query_pitch = t.key_pitch = pitch_of(work.head_dim);
  t.value_pitch = pitch_of(work.v_head_dim);
  t.group = divider_of(group_of(work));
  t.slot_bytes = kKeyTile * std::max(t.key_pitch, t.value_pitch);
  for (const Occupancy& o : kOccupancies) {
    if (32 * o.warps > forward_threads(t.row_tiles)) continue;
    t.warps = o.warps;
    t.rows = kTile * t.row_tiles * t.warps;
    t.row_blocks = divide_up(rows_of(work), t.rows);
    t.ring_offset = t.rows * t.query_pitch;
    t.slots = slots_within(processor, o.resident, t.ring_offset, t.slot_bytes);
    if (t.slots < 2) continue;
    t.shared_bytes = t.ring_offset + t.slots * t.slot_bytes;
    tiling = t;
    return true;
  }
  return no_room(work, processor, error, error_size);
}

bool choose_gradient_passes(const CinchPrefill& work, const Multiprocessor& processor, GradientPasses& passes,
                            char* error, uint64_t error_size) {
  const auto bucket = [](int columns) { return units_of(columns) <= 4 ? 4 : units_of(columns) <= 8 ? 8 : 16; };
  const int widest = bucket(std::max(work.head_dim, work.v_head_dim));
  passes.count = 0;
  const auto add = [&](int pass, int units) {
    return choose_pass(work, processor, pass, units, passes.tilings[passes.count++]);
  };
  const bool chosen = add(kOfQueries, bucket(work.head_dim)) &&
                      (widest < 16 ? add(kOfKeysAndValues, widest) : add(kOfKeys, 16) && add(kOfValues, 16));
  return chosen || no_room(work, processor, error, error_size);
}

}  // namespace cinch::prefill
