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

  CINCH_DEVICE bool valid() const { return valid_; }
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
    valid_ = false;
    while (sequence_ < end_.sequence || (sequence_ == end_.sequence && end_.block > 0)) {
      length_ = lengths_[sequence_];
      first_ = first_visible(length_, window_);
      if (fresh) block_ = first_ / kBlockTokens;
      stop_ = end_block(length_);
      if (sequence_ == end_.sequence && end_.block < stop_) stop_ = end_.block;
      if (block_ < stop_) {
        valid_ = true;
        return;
      }
      ++sequence_;
      fresh = true;
    }
  }

  PlanPoint end_;
  const int32_t* lengths_;
  int window_, sequence_, block_, stop_ = 0, first_ = 0, length_ = 0;
  bool valid_ = false;
};

class SlabLoader {
 public:
  CINCH_DEVICE SlabLoader(const DecodeJob& job, int cache_head, PlanPoint begin, PlanPoint end, int thread)
      : step_(job.step),
        tiling_(job.tiling),
        walk_(begin, end, job.step.lengths, job.step.window),
        cache_head_(cache_head),
        row_(thread / job.tiling.copy_chunks),
        chunk_(thread % job.tiling.copy_chunks) {
    if (!walk_.valid()) return;
    page_ = page_of(walk_.block());
    next_page_ = page_of(walk_.block() + 1);
  }

  /// Starts the copies of the next `count` slabs into the next slots of the ring; zeros for tokens that are not seen.
  /// One group of copies per slab, an empty one after the last slab of the part.
  CINCH_DEVICE void load(int count, Shared ring) {
    for (int i = 0; i < count; ++i) {
      if (walk_.valid()) {
        load_slab(ring + static_cast<Shared>(slot_ * tiling_.slab_bytes));
        advance();
      }
      copy_commit();
      if (++slot_ == tiling_.slabs) slot_ = 0;
    }
  }

 private:
  /// Read a block ahead: its use must not wait for it.
  CINCH_DEVICE int page_of(int block) const {
    if (step_.block_table == nullptr || block >= walk_.stop()) return 0;
    return step_.block_table[walk_.sequence() * step_.block_table_stride + block];
  }
  CINCH_DEVICE void advance() {
    if (++slab_ < kBlockSlabs) return;
    slab_ = 0;
    const int sequence = walk_.sequence();
    walk_.next();
    if (!walk_.valid()) return;
    page_ = walk_.sequence() == sequence ? next_page_ : page_of(walk_.block());
    next_page_ = page_of(walk_.block() + 1);
  }
  CINCH_DEVICE const char* token_data(const CinchDecodeCache& cache) const {
    const bool paged = step_.block_table != nullptr;
    int64_t at = cache_head_ * cache.head_stride;
    at += (paged ? page_ : walk_.sequence()) * cache.page_stride;
    at += (slab_ * kSlab + (paged ? 0 : walk_.block() * kBlockTokens)) * cache.token_stride;
    return static_cast<const char*>(cache.data) + at * 2;
  }
  /// Threads stand in a row over the chunks of 16 bytes of all 16 tokens.
  CINCH_DEVICE void load_slab(Shared slab) const {
    const char* const keys = token_data(step_.keys);
    const char* const values = step_.kind == CINCH_DECODE_GROUPED ? token_data(step_.values) : nullptr;
    const uint32_t first = static_cast<uint32_t>(walk_.block() * kBlockTokens + slab_ * kSlab - walk_.first());
    const uint32_t seen = static_cast<uint32_t>(walk_.length() - walk_.first());
    const int key_bytes = static_cast<int>(step_.keys.token_stride) * 2;
    const int value_bytes = static_cast<int>(step_.values.token_stride) * 2;
    int chunk = chunk_;
    for (int row = row_; row < kSlab;) {
      const bool valid = first + static_cast<uint32_t>(row) < seen;  // wraps around below the first visible token
      // Key scales follow the last key column, in shared memory the padding to whole mma depths.
      const int place =
          chunk * 8 < tiling_.key_columns ? chunk * 16 : chunk * 16 + tiling_.scale_offset - tiling_.key_columns * 2;
      copy_async(slab + static_cast<Shared>(row * tiling_.key_pitch + place), keys + (row * key_bytes + chunk * 16),
                 valid);
      if (values != nullptr) {
        copy_async(slab + static_cast<Shared>(tiling_.value_offset + row * tiling_.value_pitch + chunk * 16),
                   values + (row * value_bytes + chunk * 16), valid);
      }
      row += tiling_.copy_rows;
      chunk += tiling_.copy_rest;
      if (chunk >= tiling_.copy_chunks) {
        chunk -= tiling_.copy_chunks;
        ++row;
      }
    }
  }

  const CinchDecodeStep& step_;
  const Tiling& tiling_;
  BlockWalk walk_;
  int cache_head_, row_, chunk_, slab_ = 0, slot_ = 0, page_ = 0, next_page_ = 0;
};

}  // namespace cinch::decode
