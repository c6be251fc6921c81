#include "attention/kernels/decode/append_job.h"

#include <stdio.h>

namespace cinch::decode {
namespace {

constexpr int kMostColumns = 8 * 32 * kLaneUnits;  // of a part of a token's codes

int divide_up(int a, int b) { return (a + b - 1) / b; }

int rotary_heads(const CinchCacheAppend& a) { return a.rope_per_kv_head != 0 ? a.n_kv_heads : 1; }
int rotary_columns(const CinchCacheAppend& a) { return rotary_heads(a) * a.qk_rope_head_dim; }
int scale_columns(const CinchCacheAppend& a) { return a.key_scales != 0 ? a.n_kv_heads : 0; }

struct Rule {
  bool holds;
  const char* text;
  int64_t found;
};

template <int kCount>
bool check(const Rule (&rules)[kCount], char* error, uint64_t error_size) {
  for (const Rule& rule : rules) {
    if (rule.holds) continue;
    snprintf(error, error_size, "%s, found %lld", rule.text, static_cast<long long>(rule.found));
    return false;
  }
  return true;
}

bool in(int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; }

bool check_shape(const CinchCacheAppend& a, char* error, uint64_t error_size) {
  const bool latent = a.kind == CINCH_DECODE_LATENT;
  const int64_t width = latent ? a.qk_rope_head_dim : a.head_dim;
  const Rule rules[] = {
      {a.kind == CINCH_DECODE_GROUPED || latent, "kind must be grouped or latent", a.kind},
      {a.type == CINCH_DECODE_BF16 || a.type == CINCH_DECODE_FP16, "type must be bf16 or fp16", a.type},
      {in(a.cache_format, CINCH_CACHE_16BIT, CINCH_CACHE_INT4), "cache_format must be 16 bits, int8, fp8 or int4",
       a.cache_format},
      {in(a.pairs, CINCH_PAIRS_HALVES, CINCH_PAIRS_NEIGHBOURS), "pairs must be halves or neighbours", a.pairs},
      {in(a.batch, 1, 65536), "batch must be in 1..65536", a.batch},
      {in(a.tokens, 1, 1 << 24), "tokens must be in 1..2^24", a.tokens},
      {in(a.n_heads, 1, 1024), "n_heads must be in 1..1024", a.n_heads},
      {in(a.n_kv_heads, 1, 1024), "n_kv_heads must be in 1..1024", a.n_kv_heads},
      {latent || in(a.head_dim, 1, 1024), "head_dim must be in 1..1024", a.head_dim},
      {!latent || in(a.kv_lora_rank, 1, 4096), "kv_lora_rank must be in 1..4096", a.kv_lora_rank},
      {!latent || in(a.qk_rope_head_dim, 0, 1024), "qk_rope_head_dim must be in 0..1024", a.qk_rope_head_dim},
      {latent || (a.key_scales == 0 && a.rope_per_kv_head == 0),
       "key scales and rotary keys of KV heads need latent attention", a.kind},
      {in(a.rotary_dim, 0, width) && a.rotary_dim % 2 == 0, "rotary_dim must be even and at most a head's width",
       a.rotary_dim},
      {!latent || a.rotary_dim == width, "rotary_dim of latent attention must be qk_rope_head_dim", a.rotary_dim},
  };
  return check(rules, error, error_size);
}

/// 16-bit rows of `width` numbers, in a cache or in an open page.
bool holds_rows(const CinchDecodeCache& cache, int64_t width) {
  return cache.data != nullptr && cache.token_stride >= width;
}

bool check_arrays(const CinchCacheAppend& a, char* error, uint64_t error_size) {
  const bool latent = a.kind == CINCH_DECODE_LATENT, rows = a.cache_format == CINCH_CACHE_16BIT;
  const bool keyless = latent && a.qk_rope_head_dim == 0;
  const int64_t width = latent ? a.kv_lora_rank + rotary_columns(a) + scale_columns(a) : a.head_dim;
  const Rule rules[] = {
      {a.rotary_dim == 0 || (a.cos != nullptr && a.sin != nullptr), "rotation needs cos and sin", 0},
      {(a.q.data == nullptr) == (a.q_out == nullptr), "q and q_out go together", 0},
      {keyless || a.k.data != nullptr, "k must be there", 0},
      {a.v.data != nullptr, "v must be there", 0},
      {a.key_scales == 0 || a.scales.data != nullptr, "key_scales needs scales", 0},
      {a.lengths != nullptr, "lengths must be there", 0},
      {!rows || holds_rows(a.keys, width), "keys must be there, with a token_stride that holds a row",
       a.keys.token_stride},
      {latent || holds_rows(a.values, width), "values must be there, with a token_stride that holds a row",
       a.values.token_stride},
  };
  return check(rules, error, error_size);
}

bool check_pages(const CinchCacheAppend& a, int64_t page_bytes, char* error, uint64_t error_size) {
  const int64_t columns = a.kv_lora_rank + rotary_columns(a);
  const bool int4 = a.cache_format == CINCH_CACHE_INT4;
  const Rule rules[] = {
      {a.kind == CINCH_DECODE_LATENT, "a cache below 16 bits needs latent attention", a.kind},
      {a.block_table != nullptr, "a cache below 16 bits needs pages", 0},
      {a.pairs == CINCH_PAIRS_NEIGHBOURS, "a cache below 16 bits needs pairs of neighbours", a.pairs},
      {a.kv_lora_rank % 8 == 0 && a.kv_lora_rank <= kMostColumns,
       "kv_lora_rank of a cache below 16 bits must be a multiple of 8, at most 1024", a.kv_lora_rank},
      {a.qk_rope_head_dim % 8 == 0 && rotary_columns(a) <= kMostColumns,
       "qk_rope_head_dim of a cache below 16 bits must be a multiple of 8, all rotary columns at most 1024",
       a.qk_rope_head_dim},
      {a.keys.data != nullptr && a.keys.page_stride >= page_bytes && a.keys.page_stride % 16 == 0,
       "keys must be there, with a page_stride in bytes that holds a page, a multiple of 16", a.keys.page_stride},
      {reinterpret_cast<uintptr_t>(a.keys.data) % 16 == 0, "pages must begin at a multiple of 16 bytes", 0},
      {!int4 || holds_rows(a.open, columns + scale_columns(a)),
       "an int4 cache needs open pages, with a token_stride that holds a row", a.open.token_stride},
  };
  return check(rules, error, error_size);
}

class JobMaker {
 public:
  explicit JobMaker(AppendJob& job) : job_(job), a_(job.append) {}

  void make() {
    const bool latent = a_.kind == CINCH_DECODE_LATENT, pages = a_.cache_format != CINCH_CACHE_16BIT;
    const int width = latent ? a_.qk_rope_head_dim : a_.head_dim;
    if (a_.q.data != nullptr) {
      const CinchDecodeCache to{a_.q_out, a_.q_out_batch_stride, a_.q_out_head_stride, a_.q_out_token_stride};
      move(set(kQueryRows, a_.q, a_.n_heads, width, a_.rotary_dim), to, /*in_cache=*/false);
    }
    if (latent) {
      job_.columns = a_.kv_lora_rank + rotary_columns(a_);
      AppendRows& values = set(kLatentRows, a_.v, 1, a_.kv_lora_rank, 0);
      AppendRows& keys = set(kRotaryRows, a_.k, rotary_heads(a_), width, a_.rotary_dim);
      AppendRows& scales = set(kScaleRows, a_.scales, 1, scale_columns(a_), 0);
      if (!pages) {
        move(values, columns_of(a_.keys, 0), true);
        move(keys, columns_of(a_.keys, a_.kv_lora_rank), true);
        move(scales, columns_of(a_.keys, job_.columns), true);
      }
    } else {
      move(set(kKeyRows, a_.k, a_.n_kv_heads, width, a_.rotary_dim), a_.keys, true);
      move(set(kValueRows, a_.v, a_.n_kv_heads, width, 0), a_.values, true);
    }
    const int64_t tokens = int64_t{a_.batch} * a_.tokens;
    job_.row_splits = divide_up(job_.units, kAppendThreads);
    job_.blocks = job_.row_blocks = tokens * job_.row_splits;
    if (pages) count_page_blocks(tokens);
  }

 private:
  AppendRows& set(int place, const CinchTokenRows& from, int heads, int width, int rotary_dim) {
    AppendRows& rows = job_.rows[place];
    rows.from = static_cast<const uint16_t*>(from.data);
    rows.batch_stride = from.batch_stride;
    rows.head_stride = from.head_stride;
    rows.token_stride = from.token_stride;
    rows.heads = heads;
    rows.width = width;
    rows.rotary_dim = rotary_dim;
    return rows;
  }

  /// From `column` of a latent's rows on; heads there are rotary keys side by side.
  CinchDecodeCache columns_of(const CinchDecodeCache& cache, int64_t column) const {
    return {static_cast<const uint16_t*>(cache.data) + column, cache.page_stride, a_.qk_rope_head_dim,
            cache.token_stride};
  }

  void move(AppendRows& rows, const CinchDecodeCache& to, bool in_cache) {
    rows.to = static_cast<uint16_t*>(const_cast<void*>(to.data));
    rows.to_page_stride = to.page_stride;
    rows.to_head_stride = to.head_stride;
    rows.to_token_stride = to.token_stride;
    rows.in_cache = in_cache ? 1 : 0;
    if (a_.pairs == CINCH_PAIRS_HALVES) rows.turning_units = divide_up(rows.rotary_dim / 2, 8);
    rows.units = rows.turning_units + divide_up(rows.width - (rows.turning_units > 0 ? rows.rotary_dim : 0), 8);
    job_.units += rows.units * rows.heads;
  }

  void count_page_blocks(int64_t tokens) {
    constexpr int kWarps = kAppendThreads / 32;
    if (a_.cache_format == CINCH_CACHE_INT4) {
      job_.pages = divide_up(a_.tokens, CINCH_DECODE_PAGE);
      job_.tiles = divide_up(job_.columns, kTileColumns) + (a_.key_scales != 0 ? 1 : 0);
      job_.blocks += int64_t{a_.batch} * job_.pages * job_.tiles;
      // A tile's rows; then of every column least and most number by warp, and scale and zero.
      job_.shared_bytes = CINCH_DECODE_PAGE * kTileColumns * 2 + (kWarps + 1) * kTileColumns * 8;
    } else {
      job_.parts = a_.key_scales != 0 ? 3 : 2;
      job_.blocks += (tokens * job_.parts + kWarps - 1) / kWarps;
    }
  }

  AppendJob& job_;
  const CinchCacheAppend& a_;
};

}  // namespace

bool make_append_job(const CinchCacheAppend& append, AppendJob& job, char* error, uint64_t error_size) {
  if (!check_shape(append, error, error_size) || !check_arrays(append, error, error_size)) return false;
  job = AppendJob{};
  job.append = append;
  if (append.cache_format != CINCH_CACHE_16BIT) {
    const int columns = append.kv_lora_rank + rotary_columns(append);
    job.layout = page_layout(append.cache_format, columns, scale_columns(append));
    if (!check_pages(append, job.layout.page_bytes, error, error_size)) return false;
  }
  JobMaker(job).make();
  if (job.blocks > INT32_MAX) {
    snprintf(error, error_size, "an append must need at most 2^31 - 1 thread blocks, found %lld",
             static_cast<long long>(job.blocks));
    return false;
  }
  return true;
}

}  // namespace cinch::decode
