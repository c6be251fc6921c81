// Brings a part's tokens from pages of fewer bits than 16 (page_layout.h) into the slabs that the tile routines read: a
// step's codes and scales come ahead of time into one of a ring of stages, then all threads turn them into 16 bits. A
// stage holds rows of codes, stage_pitch bytes apart, then what stage_scales and stage_key_scales say.
#pragma once

#include "attention/kernels/decode/page_numbers.h"
#include "attention/kernels/decode/slab_loader.h"

namespace cinch::decode {

/// A step is `warps` slabs; all threads of the block call these functions.
template <class T>
class PackedSlabs {
 public:
  CINCH_DEVICE PackedSlabs(const DecodeJob& job, const BlockWalk& walk, int thread)
      : step_(job.step), tiling_(job.tiling), walk_(walk), thread_(thread) {
    if (walk_.valid()) open_block(page_of(walk_.block()));
  }

  /// Starts the copies of the first steps.
  CINCH_DEVICE void begin() {
    for (int i = 0; i < tiling_.stages; ++i) load(stage_address(i));
  }

  /// Fills the slabs with the next step, tokens from `first` on of `walk`'s sequence; zeros for those that are not
  /// seen.
  CINCH_DEVICE void take(const BlockWalk& walk, int first) {
    copy_wait(tiling_.stages - 1);
    sync_block();  // the stage is there for all, and nobody reads the slabs of the step before any more
    const Shared stage = stage_address(stage_);
    if (!is_packed(walk, walk.block())) {
      copy_open(walk, first);
    } else if (step_.cache_format == CINCH_CACHE_INT4) {
      unpack_channels(walk, first, stage);
    } else if (step_.cache_format == CINCH_CACHE_INT8) {
      unpack_tokens<CINCH_CACHE_INT8>(walk, first, stage);
    } else {
      unpack_tokens<CINCH_CACHE_FP8>(walk, first, stage);
    }
    if (tiling_.scale_columns > 0 && is_packed(walk, walk.block())) unpack_key_scales(walk, first, stage);
    sync_block();
    load(stage);
    if (++stage_ == tiling_.stages) stage_ = 0;
  }

 private:
  static constexpr int kMostSlabs = kBlockSlabs;  // of a step

  /// Not the last tokens of an int4 sequence, which are in its open page.
  CINCH_DEVICE bool is_packed(const BlockWalk& walk, int block) const {
    return step_.cache_format != CINCH_CACHE_INT4 || block < walk.length() / kBlockTokens;
  }
  CINCH_DEVICE int page_of(int block) const {
    if (block >= walk_.stop() || !is_packed(walk_, block)) return 0;
    return step_.block_table[walk_.sequence() * step_.block_table_stride + block];
  }
  /// The next block's page is read a block ahead, as its use would wait.
  CINCH_DEVICE void open_block(int page) {
    page_ = static_cast<const char*>(step_.keys.data) + page * step_.keys.page_stride;
    next_page_ = page_of(walk_.block() + 1);
    slab_ = 0;
  }

  CINCH_DEVICE Shared stage_address(int index) const {
    return shared_begin() + static_cast<Shared>(tiling_.stage_offset + index * tiling_.stage_bytes);
  }
  CINCH_DEVICE Shared slab_address(int slab) const {
    return shared_begin() + static_cast<Shared>(tiling_.ring_offset + slab * tiling_.slab_bytes);
  }
  CINCH_DEVICE int threads() const { return 32 * tiling_.warps * tiling_.row_groups; }
  // A sixteenth of the threads takes one token of each slab, neighbours neighbouring pieces.
  CINCH_DEVICE int row_threads() const { return 2 * tiling_.warps * tiling_.row_groups; }
  CINCH_DEVICE int row() const { return thread_ >> (1 + tiling_.warp_bits + tiling_.row_groups / 2); }
  CINCH_DEVICE int piece() const { return thread_ & (row_threads() - 1); }

  /// Starts the copies of the walk's next step; one group of copies, an empty one after the last step of the part.
  CINCH_DEVICE void load(Shared stage) {
    if (walk_.valid()) {
      if (is_packed(walk_, walk_.block())) load_step(stage);
      slab_ += tiling_.warps;
      if (slab_ == kBlockSlabs) {
        const int sequence = walk_.sequence();
        walk_.next();
        if (walk_.valid()) open_block(walk_.sequence() == sequence ? next_page_ : page_of(walk_.block()));
      }
    }
    copy_commit();
  }
  CINCH_DEVICE void load_step(Shared stage) const {
    const PageLayout& page = tiling_.page;
    const int in_page = slab_ * kSlab;  // the step's first token
    for (int s = 0; s < tiling_.warps; ++s) {
      const int token = walk_.block() * kBlockTokens + in_page + s * kSlab;
      if (token + kSlab <= walk_.first() || token >= walk_.length()) continue;  // nothing of the slab is seen
      const int slab_row = s * kSlab + row();
      const char* const from = page_ + (in_page + slab_row) * page.row_bytes;
      const Shared to = stage + static_cast<Shared>(slab_row * tiling_.stage_pitch);
      CINCH_UNROLL_BY_4
      for (int i = piece(); i < page.row_bytes / 16; i += row_threads()) copy_async(to + 16 * i, from + 16 * i, true);
    }
    const int tokens = tiling_.warps * kSlab;
    if (step_.cache_format == CINCH_CACHE_INT4) {
      copy_bytes(stage + tiling_.stage_scales, page_ + page.scales, 4 * tiling_.key_columns);  // and the zeros
    } else {
      copy_bytes(stage + tiling_.stage_scales, page_ + page.scales + in_page * 4, tokens * 4);
    }
    if (tiling_.scale_columns > 0) {
      copy_bytes(stage + tiling_.stage_key_scales, page_ + page.key_scales + in_page * tiling_.scale_columns * 2,
                 tokens * tiling_.scale_columns * 2);
    }
  }
  CINCH_DEVICE void copy_bytes(Shared to, const char* from, int bytes) const {
    for (int i = thread_ * 16; i < bytes; i += threads() * 16) copy_async(to + i, from + i, true);
  }

  CINCH_DEVICE bool is_seen(const BlockWalk& walk, int token) const {
    return token >= walk.first() && token < walk.length();
  }

  // Each turn takes 8 columns of this thread's token of every slab: first all loads, then numbers and stores.

  template <int kFormat>
  CINCH_DEVICE void unpack_tokens(const BlockWalk& walk, int first, Shared stage) const {
    float latent[kMostSlabs], rotary[kMostSlabs];  // scales; 0 where the token is not seen
    bool seen[kMostSlabs];
    CINCH_UNROLL
    for (int s = 0; s < kMostSlabs; ++s) {
      seen[s] = s < tiling_.warps && is_seen(walk, first + s * kSlab + row());
      const uint32_t scales =
          seen[s] ? shared_word(stage + static_cast<Shared>(tiling_.stage_scales + (s * kSlab + row()) * 4)) : 0;
      latent[s] = Bf16::to_float(static_cast<uint16_t>(scales & 0xffffu));
      rotary[s] = Bf16::to_float(static_cast<uint16_t>(scales >> 16));
    }
    const int latent_units = tiling_.value_columns / 8, units = tiling_.key_columns / 8;
    CINCH_UNROLL_BY_1
    for (int unit = piece(); unit < units; unit += row_threads()) {
      Words2 codes[kMostSlabs];
      CINCH_UNROLL
      for (int s = 0; s < kMostSlabs; ++s) {
        codes[s] = {0, 0};
        if (seen[s])
          codes[s] = shared_words2(stage + static_cast<Shared>((s * kSlab + row()) * tiling_.stage_pitch + unit * 8));
      }
      CINCH_UNROLL
      for (int s = 0; s < kMostSlabs; ++s) {
        if (s >= tiling_.warps) break;
        const float scale = unit < latent_units ? latent[s] : rotary[s];
        shared_store(
            slab_address(s) + static_cast<Shared>(row() * tiling_.key_pitch + unit * 16),
            kFormat == CINCH_CACHE_INT8 ? int8_numbers(T(), codes[s], scale) : fp8_numbers(T(), codes[s], scale));
      }
    }
  }

  CINCH_DEVICE void unpack_channels(const BlockWalk& walk, int first, Shared stage) const {
    const int units = tiling_.key_columns / 8;
    const Shared scales = stage + static_cast<Shared>(tiling_.stage_scales);
    const Shared zeros = scales + static_cast<Shared>(2 * tiling_.key_columns);
    CINCH_UNROLL_BY_1
    for (int unit = piece(); unit < units; unit += row_threads()) {
      Channels8 channels;
      channels.load(shared_words4(scales + static_cast<Shared>(unit * 16)),
                    shared_words4(zeros + static_cast<Shared>(unit * 16)));
      uint32_t codes[kMostSlabs];
      bool seen[kMostSlabs];
      CINCH_UNROLL
      for (int s = 0; s < kMostSlabs; ++s) {
        seen[s] = s < tiling_.warps && is_seen(walk, first + s * kSlab + row());
        codes[s] = 0;
        if (seen[s])
          codes[s] = shared_word(stage + static_cast<Shared>((s * kSlab + row()) * tiling_.stage_pitch + unit * 4));
      }
      CINCH_UNROLL
      for (int s = 0; s < kMostSlabs; ++s) {
        if (s >= tiling_.warps) break;
        const Words4 numbers = channels.numbers(T(), codes[s]);
        shared_store(slab_address(s) + static_cast<Shared>(row() * tiling_.key_pitch + unit * 16),
                     seen[s] ? numbers : Words4{0, 0, 0, 0});
      }
    }
  }

  CINCH_DEVICE void unpack_key_scales(const BlockWalk& walk, int first, Shared stage) const {
    for (int s = 0; s < tiling_.warps; ++s) {
      const int slab_row = s * kSlab + row();
      const Shared from = stage + static_cast<Shared>(tiling_.stage_key_scales + slab_row * tiling_.scale_columns * 2);
      const Shared to = slab_address(s) + static_cast<Shared>(row() * tiling_.key_pitch + tiling_.scale_offset);
      for (int i = piece(); i < tiling_.scale_columns; i += row_threads()) {
        const auto at = static_cast<Shared>(2 * i);
        shared_store(to + at, is_seen(walk, first + slab_row) ? shared_half(from + at) : uint16_t{0});
      }
    }
  }

  /// 16-bit rows, once per sequence at most: without stages.
  CINCH_DEVICE void copy_open(const BlockWalk& walk, int first) const {
    const int keys = tiling_.key_columns / 8, pieces = keys + (tiling_.scale_columns + 7) / 8;
    for (int s = 0; s < tiling_.warps; ++s) {
      const int token = first + s * kSlab + row();
      const bool seen = is_seen(walk, token);
      const auto* const from =
          static_cast<const Words4*>(step_.open.data) +
          (walk.sequence() * step_.open.page_stride + token % kBlockTokens * step_.open.token_stride) / 8;
      const Shared to = slab_address(s) + static_cast<Shared>(row() * tiling_.key_pitch);
      for (int i = piece(); i < pieces; i += row_threads()) {
        const int at = i < keys ? i * 16 : tiling_.scale_offset + (i - keys) * 16;
        shared_store(to + static_cast<Shared>(at), seen ? global_load<Words4>(from + i) : Words4{0, 0, 0, 0});
      }
    }
  }

  const CinchDecodeStep& step_;
  const Tiling& tiling_;
  BlockWalk walk_;  // ahead of the one that is taken
  int thread_, slab_ = 0, stage_ = 0, next_page_ = 0;
  const char* page_ = nullptr;
};

}  // namespace cinch::decode
