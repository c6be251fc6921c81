// Brings a part's tokens into the ring of slabs, ahead of those who use them.
#pragma once

#include "attention/kernels/decode/split_plan.h"
#include "attention/kernels/decode/tiling.h"
#include "attention/kernels/decode/warp.h"

namespace cinch::decode {

/// Walks over the blocks of 64 tokens from one point of the split plan to another, past empty sequences.
class BlockWalk {
 public:
  CINCH_DEVICE BlockWalk(PlanPoint begin, PlanPoint end, const int32_t* lengths, int window)
      : end_(end), lengths_(lengths), window_(window), sequence_(begin.sequence), block_(begin.block) {
    settle(/*fresh=*/false);
  }

  CINCH_DEVICE bool valid() const { return block_ < stop_; }
  CINCH_DEVICE int sequence() const { return sequence_; }
  CINCH_DEVICE int block() const { return block_; }
  CINCH_DEVICE int stop() const { return stop_; }      // first block of the sequence that is not walked
  CINCH_DEVICE int first() const { return first_; }    // visible token
  CINCH_DEVICE int length() const { return length_; }  // of the sequence
  CINCH_DEVICE void next() {
    if (++block_ < stop_) return;
    ++sequence_;
    settle(/*fresh=*/true);
  }

 private:
  CINCH_DEVICE void settle(bool fresh) {
    while (sequence_ < end_.sequence || (sequence_ == end_.sequence && end_.block > 0)) {
      length_ = lengths_[sequence_];
      first_ = first_visible(length_, window_);
      if (fresh) block_ = first_ / kBlockTokens;
      stop_ = end_block(length_);
      if (sequence_ == end_.sequence && end_.block < stop_) stop_ = end_.block;
      if (block_ < stop_) return;
      ++sequence_;
      fresh = true;
    }
    stop_ = block_;
  }

  PlanPoint end_;
  const int32_t* lengths_;
  int window_, sequence_, block_, stop_ = 0, first_ = 0, length_ = 0;
};

/// kGrouped: of keys and values, where step.kind says so; else of latents only.
template <bool kGrouped>
class SlabLoader {
 public:
  CINCH_DEVICE SlabLoader(const DecodeJob& job, int cache_head, PlanPoint begin, PlanPoint end, int thread)
      : step_(job.step),
        tiling_(job.tiling),
        walk_(begin, end, job.step.lengths, job.step.window),
        cache_head_(cache_head),
        thread_(thread) {
    if (walk_.valid()) open_block(page_of(walk_.block()));
  }

  /// Starts the copies of the next `count` slabs into the ring from slot `slot` on; zeros for tokens that are not seen.
  /// One group of copies per slab, an empty one after the last slab of the part.
  CINCH_DEVICE void load(int count, Shared ring, int slot) {
    for (int i = 0; i < count; ++i) {
      if (walk_.valid()) {
        load_slab(ring + static_cast<Shared>(slot * tiling_.slab_bytes));
        advance();
      }
      copy_commit();
      if (++slot == tiling_.slabs) slot = 0;
    }
  }

 private:
  CINCH_DEVICE bool grouped() const { return kGrouped && step_.kind == CINCH_DECODE_GROUPED; }
  CINCH_DEVICE int page_of(int block) const {
    if (step_.block_table == nullptr || block >= walk_.stop()) return 0;
    return step_.block_table[walk_.sequence() * step_.block_table_stride + block];
  }
  /// This thread's token of the block's first slab; the next block's page is read a block ahead, as its use would wait.
  CINCH_DEVICE void open_block(int page) {
    keys_ = token_data(step_.keys, page);
    if (grouped()) values_ = token_data(step_.values, page);
    next_page_ = page_of(walk_.block() + 1);
  }
  CINCH_DEVICE const char* token_data(const CinchDecodeCache& cache, int page) const {
    const bool paged = step_.block_table != nullptr;
    int64_t at = cache_head_ * cache.head_stride + (paged ? page : walk_.sequence()) * cache.page_stride;
    at += (row() + (paged ? 0 : walk_.block() * kBlockTokens)) * cache.token_stride;
    return static_cast<const char*>(cache.data) + at * 2;
  }
  CINCH_DEVICE void advance() {
    if (++slab_ < kBlockSlabs) {
      keys_ += step_.keys.token_stride * (2 * kSlab);
      if (grouped()) values_ += step_.values.token_stride * (2 * kSlab);
      return;
    }
    slab_ = 0;
    const int sequence = walk_.sequence();
    walk_.next();
    if (walk_.valid()) open_block(walk_.sequence() == sequence ? next_page_ : page_of(walk_.block()));
  }

  // A sixteenth of the threads copies one token's row, neighbours neighbouring pieces of 16 bytes.
  CINCH_DEVICE int row_threads() const { return 2 * tiling_.warps * tiling_.row_groups; }
  CINCH_DEVICE int row() const { return thread_ >> (1 + tiling_.warp_bits + tiling_.row_groups / 2); }
  CINCH_DEVICE void load_slab(Shared slab) const {
    const int token = walk_.block() * kBlockTokens + slab_ * kSlab + row();
    const bool valid = token >= walk_.first() && token < walk_.length();
    const Shared keys = slab + static_cast<Shared>(row() * tiling_.key_pitch);
    copy_row(keys, keys_, tiling_.key_columns / 8, valid);
    if (tiling_.scale_columns > 0) {
      copy_row(keys + static_cast<Shared>(tiling_.scale_offset), keys_ + tiling_.key_columns * 2,
               (tiling_.scale_columns + 7) / 8, valid);
    }
    if (grouped()) {
      copy_row(slab + static_cast<Shared>(tiling_.value_offset + row() * tiling_.value_pitch), values_,
               tiling_.value_columns / 8, valid);
    }
  }
  CINCH_DEVICE void copy_row(Shared to, const char* from, int pieces, bool valid) const {
    const int first = thread_ & (row_threads() - 1), step = 16 * row_threads();
    to += static_cast<Shared>(16 * first);
    from += 16 * first;
    for (int left = 16 * (pieces - first); left > 0; left -= step) {
      copy_async(to, from, valid);
      to += static_cast<Shared>(step);
      from += step;
    }
  }

  const CinchDecodeStep& step_;
  const Tiling& tiling_;
  BlockWalk walk_;
  int cache_head_, thread_, slab_ = 0, next_page_ = 0;
  const char* keys_ = nullptr;  // of this thread's token in the next slab
  const char* values_ = nullptr;
};

}  // namespace cinch::decode
