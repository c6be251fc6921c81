#include "attention/kernels/decode/tiling.h"

#include <stdio.h>

#include <algorithm>

namespace cinch::decode {
namespace {

constexpr int kReservedBytes = 1024;  // of shared memory, per resident thread block
constexpr int kRegisters = 65536;     // of a multiprocessor
constexpr int kMaxSlabs = 16;
constexpr int kMaxResident = 4;
constexpr int kMaxStages = 8;

int divide_up(int a, int b) { return (a + b - 1) / b; }
int round_up(int a, int b) { return divide_up(a, b) * b; }
/// Bytes of a row in shared memory: whole mma depths, an odd number of 16 bytes.
int pitch_of(int columns) { return (round_up(columns, 16) / 8 | 1) * 16; }

struct Rule {
  bool holds;
  const char* text;
  int64_t found;
};

bool check(const CinchDecodeStep& s, char* error, uint64_t error_size) {
  const bool latent = s.kind == CINCH_DECODE_LATENT, mapped = s.v_head_dim != 0;
  const int64_t rope = static_cast<int64_t>(s.qk_rope_head_dim) * (s.rope_per_kv_head != 0 ? s.n_kv_heads : 1);
  const int64_t tail = s.key_scales != 0 ? s.n_kv_heads : 0;
  const bool packed = s.cache_format != CINCH_CACHE_16BIT;
  const auto in = [](int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; };
  const auto strides = [](const CinchDecodeCache& c) {
    return c.page_stride % 8 == 0 && c.head_stride % 8 == 0 && c.token_stride % 8 == 0;
  };
  const int64_t page = packed && latent ? page_layout(s.cache_format, static_cast<int32_t>(s.kv_lora_rank + rope),
                                                      static_cast<int32_t>(tail))
                                              .page_bytes
                                        : 0;
  const Rule rules[] = {
      {s.kind == CINCH_DECODE_GROUPED || latent, "kind must be grouped or latent", s.kind},
      {s.type == CINCH_DECODE_BF16 || s.type == CINCH_DECODE_FP16, "type must be bf16 or fp16", s.type},
      {in(s.batch, 1, 65536), "batch must be in 1..65536", s.batch},
      {in(s.n_heads, 1, 128), "n_heads must be in 1..128", s.n_heads},
      {in(s.n_kv_heads, 1, 128) && s.n_heads % s.n_kv_heads == 0, "n_kv_heads must divide n_heads", s.n_kv_heads},
      {s.scale > 0, "scale must be positive", 0},
      {s.softcap >= 0, "softcap must not be negative", 0},
      {s.window >= 0, "window must not be negative", s.window},
      {latent || (in(s.head_dim, 32, 256) && s.head_dim % 8 == 0), "head_dim must be a multiple of 8 in 32..256",
       s.head_dim},
      {!latent || (in(s.kv_lora_rank, 16, 1024) && s.kv_lora_rank % 8 == 0),
       "kv_lora_rank must be a multiple of 8 in 16..1024", s.kv_lora_rank},
      {!latent || (in(rope, 8, 1024) && rope % 8 == 0), "rotary columns must be a multiple of 8 in 8..1024", rope},
      {latent || !mapped, "v_head_dim needs latent attention", s.kind},
      {latent || (s.key_scales == 0 && s.rope_per_kv_head == 0),
       "key scales and rotary keys of KV heads need latent attention", s.kind},
      {!mapped || (in(s.v_head_dim, 8, 512) && s.v_head_dim % 8 == 0), "v_head_dim must be a multiple of 8 in 8..512",
       s.v_head_dim},
      {mapped || s.value_bias == nullptr, "value_bias needs v_head_dim", 0},
      {s.q_batch_stride % 8 == 0 && s.q_head_stride % 8 == 0, "strides of q must be multiples of 8", s.q_head_stride},
      {s.out_batch_stride % 2 == 0 && s.out_head_stride % 2 == 0, "strides of out must be even", s.out_head_stride},
      {s.value_map_head_stride % 8 == 0 && s.value_map_row_stride % 8 == 0,
       "strides of value_map must be multiples of 8", s.value_map_row_stride},
      {strides(s.keys) && strides(s.values), "strides of caches must be multiples of 8", s.keys.token_stride},
      {in(s.keys.token_stride, 0, 1 << 24) && in(s.values.token_stride, 0, 1 << 24),
       "a token's stride must be at most 2^24", s.keys.token_stride},
      {in(s.cache_format, CINCH_CACHE_16BIT, CINCH_CACHE_INT4), "cache_format must be 16 bits, int8, fp8 or int4",
       s.cache_format},
      {!packed || latent, "a cache_format below 16 bits needs latent attention", s.kind},
      {!packed || (s.keys.page_stride % 16 == 0 && (s.keys.page_stride == 0 || s.keys.page_stride >= page)),
       "page_stride below 16 bits must be a multiple of 16 bytes and hold a page", s.keys.page_stride},
      {s.cache_format != CINCH_CACHE_INT4 || strides(s.open), "strides of open pages must be multiples of 8",
       s.open.token_stride},
      {s.cache_format != CINCH_CACHE_INT4 || s.open.token_stride == 0 ||
           s.open.token_stride >= (s.kv_lora_rank + rope + tail + 7) / 8 * 8,
       "an open page's token_stride must hold a row, padded to a multiple of 8", s.open.token_stride},
      {packed || !latent || s.keys.token_stride == 0 ||
           s.keys.token_stride >= (s.kv_lora_rank + rope + tail + 7) / 8 * 8,
       "a latent's token_stride must hold its row, padded to a multiple of 8", s.keys.token_stride},
  };
  for (const Rule& rule : rules) {
    if (rule.holds) continue;
    snprintf(error, error_size, "%s, found %lld", rule.text, static_cast<long long>(rule.found));
    return false;
  }
  return true;
}

void describe_shape(const CinchDecodeStep& step, Tiling& t) {
  const bool latent = step.kind == CINCH_DECODE_LATENT;
  t.cache_heads = latent ? 1 : step.n_kv_heads;
  t.rows = step.n_heads / t.cache_heads;
  t.value_columns = latent ? step.kv_lora_rank : step.head_dim;
  const int rope = step.qk_rope_head_dim * (step.rope_per_kv_head != 0 ? step.n_kv_heads : 1);
  t.key_columns = latent ? step.kv_lora_rank + rope : step.head_dim;
  t.scale_columns = step.key_scales != 0 ? step.n_kv_heads : 0;
}

/// Everything that follows from the shape, row_tiles, row_groups and warps, but for the number of slabs.
void lay_out(const CinchDecodeStep& step, Tiling& t) {
  const int value_units = divide_up(t.value_columns, kUnit);
  const bool packed = step.cache_format != CINCH_CACHE_16BIT;
  t.units = value_units <= 4 && !packed ? 4 : 8;
  t.column_warps = std::min(t.warps, value_units <= 8 ? 1 : value_units <= 16 ? 2 : 4);
  t.column_blocks = divide_up(value_units, t.units * t.column_warps);
  t.block_units = divide_up(value_units, t.column_blocks);
  t.warp_units = divide_up(t.block_units, t.column_warps);
  const int block_rows = 16 * t.row_tiles * t.row_groups;
  t.row_blocks = divide_up(t.rows, block_rows);

  t.warp_bits = t.warps / 2;  // of 1, 2, 4
  const bool grouped = step.kind == CINCH_DECODE_GROUPED;
  t.query_pitch = pitch_of(t.key_columns);
  t.scale_offset = round_up(t.key_columns, 16) * 2;
  t.key_pitch = pitch_of(round_up(t.key_columns, 16) + t.scale_columns);
  t.value_pitch = grouped ? pitch_of(t.value_columns) : t.key_pitch;
  t.value_offset = grouped ? kSlab * t.key_pitch : 0;
  t.slab_bytes = kSlab * t.key_pitch + (grouped ? kSlab * t.value_pitch : 0);
  // Teams bring their sums together where the queries were.
  const int teams = t.warps / t.column_warps;
  const int merge_bytes = teams > 1 ? t.row_groups * t.column_warps * t.row_tiles * t.warp_units * 1024 : 0;
  t.weight_offset = std::max(block_rows * t.query_pitch, merge_bytes);
  t.weight_pitch = t.warps * kSlab * 2 + 16;
  t.state_offset = t.weight_offset + (t.column_warps > 1 ? block_rows * t.weight_pitch : 0);
  t.ring_offset = t.state_offset + block_rows * t.warps * 8;
}

/// The stages of a packed cache, but for their number: rows of codes such that the threads of a warp, which take pieces
/// of 8 numbers of several rows, meet different banks of shared memory.
void lay_out_stages(const CinchDecodeStep& step, Tiling& t) {
  const bool int4 = step.cache_format == CINCH_CACHE_INT4;
  const int tokens = t.warps * kSlab;
  t.page = page_layout(step.cache_format, t.key_columns, t.scale_columns);
  const int row_threads = 2 * t.warps * t.row_groups, apart = row_threads * (int4 ? 4 : 8) % 128;
  t.stage_pitch = t.page.row_bytes;
  const bool spread = apart % 128 != 0 && apart % 16 == 0;  // rows begin at multiples of 16
  while (spread && t.stage_pitch % 128 != apart && t.stage_pitch % 128 != 128 - apart) t.stage_pitch += 16;
  t.stage_scales = tokens * t.stage_pitch;
  t.stage_key_scales = t.stage_scales + (int4 ? 4 * t.key_columns : 4 * tokens);
  t.stage_bytes = t.stage_key_scales + 2 * t.scale_columns * tokens;
  t.slabs = t.warps;
  t.stage_offset = t.ring_offset + t.slabs * t.slab_bytes;
}
/// As many thread blocks per multiprocessor as still have two stages; else one, with what fits.
void choose_stages(const Multiprocessor& processor, const TilingWish& wish, Tiling& t) {
  const int by_registers =
      kRegisters / (32 * t.warps * t.row_groups * register_budget(t.row_tiles, t.units, t.column_warps));
  const int most = wish.resident > 0 ? wish.resident : std::min(kMaxResident, by_registers);
  for (t.resident = std::max(1, most);; --t.resident) {
    const int bytes = std::min(processor.shared_bytes / t.resident - kReservedBytes, processor.shared_bytes_per_block);
    t.stages = std::clamp((bytes - t.stage_offset) / t.stage_bytes, 0, kMaxStages);
    if (bytes < t.stage_offset) t.stages = 0;
    if (t.resident == 1 || t.stages >= 2 || wish.resident > 0) break;
  }
  if (wish.slabs > 0) t.stages = std::min(t.stages, wish.slabs);
  t.shared_bytes = t.stage_offset + t.stages * t.stage_bytes;
}

int slabs_within(const Tiling& t, int bytes) {
  return bytes < t.ring_offset ? 0 : std::min((bytes - t.ring_offset) / t.slab_bytes, kMaxSlabs);
}

/// As many thread blocks per multiprocessor as still have two steps in their rings; two latents' even with little
/// lookahead, as they hide each other's waits.
void choose_ring(const CinchDecodeStep& step, const Multiprocessor& processor, const TilingWish& wish, Tiling& t) {
  const int of_two = step.kind == CINCH_DECODE_LATENT ? t.warps + 1 : 2 * t.warps;
  const int threads = 32 * t.warps * t.row_groups;
  const int by_registers = kRegisters / (threads * register_budget(t.row_tiles, t.units, t.column_warps));
  const int most = wish.resident > 0 ? wish.resident : std::min(kMaxResident, by_registers);
  for (t.resident = std::max(1, most);; --t.resident) {
    const int bytes = processor.shared_bytes / t.resident - kReservedBytes;
    t.slabs = slabs_within(t, std::min(bytes, processor.shared_bytes_per_block));
    if (t.resident == 1 || t.slabs >= (t.resident == 2 ? of_two : 2 * t.warps) || wish.resident > 0) break;
  }
  if (wish.slabs > 0) t.slabs = std::min(t.slabs, wish.slabs);
  t.shared_bytes = t.ring_offset + t.slabs * t.slab_bytes;
}

/// False where shared memory does not hold this layout; `ahead`: where the slabs have no lookahead either.
bool choose_memory(const CinchDecodeStep& step, const Multiprocessor& processor, const TilingWish& wish, bool ahead,
                   Tiling& t) {
  if (step.cache_format != CINCH_CACHE_16BIT) {
    lay_out_stages(step, t);
    choose_stages(processor, wish, t);
    return t.stages > 0;
  }
  choose_ring(step, processor, wish, t);
  const int lookahead = !ahead ? 0 : step.kind == CINCH_DECODE_LATENT ? 1 : divide_up(t.warps, 2);
  return t.slabs >= t.warps + lookahead;
}

/// The combine: groups where a sequence has many parts; pieces of work of the value map as small as thread blocks are
/// many, and as fit into shared memory.
void choose_combine(const CinchDecodeStep& step, Tiling& t) {
  const int threads = 32 * t.warps * t.row_groups;
  t.merge_groups = t.parts > 6 * step.batch ? threads / 16 : 1;
  const int merge_bytes = round_up(kMergeBytes * threads, 16);
  t.shared_bytes = std::max(t.shared_bytes, merge_bytes);
  if (step.v_head_dim == 0) return;
  const int blocks = t.parts * t.cache_heads * t.row_blocks * t.column_blocks;
  const int pieces = step.n_heads * divide_up(step.batch, kMapBatch);
  const int pitch = round_up(t.value_columns, 16) * 2 + 16;
  t.map_offset = std::max(kMapBatch * pitch, merge_bytes);
  t.shared_bytes = std::max(t.shared_bytes, t.map_offset + 16 * pitch);
  const int fitting = (t.shared_bytes - t.map_offset) / pitch / 16 * 16;
  t.value_rows = std::min(round_up(divide_up(step.v_head_dim, std::max(1, blocks / pieces)), 16), fitting);
}

}  // namespace

bool choose_tiling(const CinchDecodeStep& step, const Multiprocessor& processor, const TilingWish& wish, Tiling& tiling,
                   char* error, uint64_t error_size) {
  if (!check(step, error, error_size)) return false;
  Tiling t{};
  describe_shape(step, t);
  const int row_tiles = wish.row_tiles > 0 ? wish.row_tiles : t.rows <= 16 ? 1 : 2;
  const int row_groups = wish.row_groups > 0 ? wish.row_groups : t.rows > 16 * row_tiles ? 2 : 1;
  const int warps = wish.warps > 0 ? wish.warps : 4;
  // First with some lookahead, then with whatever fits; first all rows at once, then fewer, and large steps before
  // small ones.
  for (const bool ahead : {true, false}) {
    for (t.row_tiles = row_tiles; t.row_tiles > 0; --t.row_tiles) {
      for (t.row_groups = row_groups; t.row_groups > 0; --t.row_groups) {
        for (t.warps = warps; t.warps > 0; t.warps /= 2) {
          lay_out(step, t);
          if (!choose_memory(step, processor, wish, ahead, t)) continue;
          const int head_blocks = t.cache_heads * t.row_blocks * t.column_blocks;
          t.parts = wish.parts > 0 ? wish.parts : std::max(1, processor.count * t.resident / head_blocks);
          choose_combine(step, t);
          tiling = t;
          return true;
        }
      }
    }
  }
  snprintf(error, error_size, "rows of %d columns do not fit into %d bytes of shared memory", t.key_columns,
           processor.shared_bytes_per_block);
  return false;
}

}  // namespace cinch::decode
