// Brings a part's tokens into the ring of slabs, ahead of those who use them.
#pragma once

#include "attention/kernels/decode/split_plan.h"
#include "attention/kernels/decode/tiling.h"
#include "attention/kernels/warp/warp.h"

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
  CINCH_DEVICE SlabLoader(const DecodeJob& job, int cache_head, const BlockWalk& walk, int thread)
      : step_(job.step), tiling_(job.tiling), walk_(walk), cache_head_(cache_head), thread_(thread) {
    if (walk_.valid()) open_block(page_of(walk_.block()));
  }

  /// Starts the copies of the next `count` slabs into the ring from slot `slot` on; zeros for tokens that are not seen.
  /// One group of copies per slab, an empty one after the last slab of the part.
  CINCH_DEVICE void load(int count, Shared ring, int slot) {
    const int thread = recomputed(thread_);
    // Constant distances between a thread's pieces for the usual numbers of threads.
    if (row_threads() == 8) return load_by<8>(count, ring, slot, thread);
    load_by<0>(count, ring, slot, thread);
  }

 private:
  CINCH_DEVICE bool grouped() const { return kGrouped && step_.kind == CINCH_DECODE_GROUPED; }
  CINCH_DEVICE int page_of(int block) const {
    if (step_.block_table == nullptr) return 0;
    return step_.block_table[walk_.sequence() * step_.block_table_stride + block];
  }
  /// This thread's token of the block's first slab; the next block's page is read a block ahead, as its use would wait.
  CINCH_DEVICE void open_block(int page) {
    token_ = walk_.block() * kBlockTokens + row(thread_);
    keys_ = token_data(step_.keys, page);
    if (grouped()) values_ = token_data(step_.values, page);
    next_page_ = walk_.block() + 1 < walk_.stop() ? page_of(walk_.block() + 1) : 0;
  }
  CINCH_DEVICE const char* token_data(const CinchDecodeCache& cache, int page) const {
    const bool paged = step_.block_table != nullptr;
    int64_t at = cache_head_ * cache.head_stride + (paged ? page : walk_.sequence()) * cache.page_stride;
    at += (paged ? row(thread_) : token_) * cache.token_stride;
    return static_cast<const char*>(cache.data) + at * 2 + piece(thread_) * 16;
  }
  CINCH_DEVICE void advance() {
    if (token_ % kBlockTokens < kBlockTokens - kSlab) {
      token_ += kSlab;
      keys_ += step_.keys.token_stride * (2 * kSlab);
      if (grouped()) values_ += step_.values.token_stride * (2 * kSlab);
      return;
    }
    const int sequence = walk_.sequence();
    walk_.next();
    if (walk_.valid()) open_block(walk_.sequence() == sequence ? next_page_ : page_of(walk_.block()));
  }

  // A sixteenth of the threads copies one token's row, neighbours neighbouring pieces of 16 bytes.
  CINCH_DEVICE int row_threads() const { return 2 * tiling_.warps * tiling_.row_groups; }
  CINCH_DEVICE int row(int thread) const { return thread >> (1 + tiling_.warp_bits + tiling_.row_groups / 2); }
  CINCH_DEVICE int piece(int thread) const { return thread & (row_threads() - 1); }

  /// kThreads = row_threads(), or 0.
  template <int kThreads>
  CINCH_DEVICE void load_by(int count, Shared ring, int slot, int thread) {
    const Shared end = ring + static_cast<Shared>(tiling_.slabs * tiling_.slab_bytes);
    Shared slab = ring + static_cast<Shared>(slot * tiling_.slab_bytes);
    const int first = piece(thread);
    const auto keys = static_cast<Shared>(row(thread) * tiling_.key_pitch + first * 16);
    const auto values = static_cast<Shared>(tiling_.value_offset + row(thread) * tiling_.value_pitch + first * 16);
    CINCH_UNROLL_BY_1
    for (int i = 0; i < count; ++i) {
      if (walk_.valid()) {
        const bool valid = token_ >= walk_.first() && token_ < walk_.length();
        copy_row<kThreads>(slab + keys, keys_, tiling_.key_columns / 8 - first, valid);
        if (tiling_.scale_columns > 0) {
          copy_row<kThreads>(slab + keys + static_cast<Shared>(tiling_.scale_offset), keys_ + tiling_.key_columns * 2,
                             (tiling_.scale_columns + 7) / 8 - first, valid);
        }
        if (grouped()) copy_row<kThreads>(slab + values, values_, tiling_.value_columns / 8 - first, valid);
        advance();
      }
      copy_commit();
      slab += static_cast<Shared>(tiling_.slab_bytes);
      if (slab == end) slab = ring;
    }
  }
  /// left: pieces of the row from this thread's first one on.
  template <int kThreads>
  CINCH_DEVICE void copy_row(Shared to, const char* from, int left, bool valid) const {
    if constexpr (kThreads > 0) {
      CINCH_UNROLL_BY_1
      for (; left > 3 * kThreads; left -= 4 * kThreads) {
        CINCH_UNROLL
        for (int i = 0; i < 4; ++i) copy_async(to + 16 * kThreads * i, from + 16 * kThreads * i, valid);
        to += 64 * kThreads;
        from += 64 * kThreads;
      }
      CINCH_UNROLL
      for (int i = 0; i < 3; ++i)
        if (left > i * kThreads) copy_async(to + 16 * kThreads * i, from + 16 * kThreads * i, valid);
    } else {
      CINCH_UNROLL_BY_1
      for (const int threads = row_threads(); left > 0; left -= threads) {
        copy_async(to, from, valid);
        to += static_cast<Shared>(16 * threads);
        from += 16 * threads;
      }
    }
  }

  const CinchDecodeStep& step_;
  const Tiling& tiling_;
  BlockWalk walk_;
  int cache_head_, thread_, token_ = 0, next_page_ = 0;
  const char* keys_ = nullptr;  // of this thread's first piece of its token in the next slab
  const char* values_ = nullptr;
};

}  // namespace cinch::decode
