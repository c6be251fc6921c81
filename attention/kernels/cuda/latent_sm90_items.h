// What one thread block of the sm_90 latent decode has to do: its part of the split plan, sequence by sequence.
#pragma once

#include "attention/kernels/cuda/sm90_layout.h"
#include "attention/kernels/decode/split_plan.h"
#include "attention/kernels/decode/tiling.h"

namespace cinch::sm90 {

/// Tiles [first_tile, end_tile) of a sequence, each with at least one visible token. place < 0: this is the whole
/// result, else that place of the partial ones.
struct WorkItem {
  int sequence, first_tile, end_tile, first_token, end_token, place;
};

class WorkItems {
 public:
  CINCH_DEVICE WorkItems(const decode::DecodeJob& job, int part, int tokens)
      : step_(job.step),
        tokens_(tokens),
        plan_(decode::SplitPlan::at(const_cast<int32_t*>(step_.plan), job.tiling.parts, step_.batch)),
        part_(part),
        begin_(plan_.points[part]),
        end_(plan_.points[part + 1]),
        sequence_(begin_.sequence) {}

  CINCH_DEVICE bool next(WorkItem& item) {
    for (; sequence_ < step_.batch && sequence_ <= end_.sequence; ++sequence_) {
      const int length = step_.lengths[sequence_];
      const decode::PlanShare share = plan_.shares[sequence_];
      if (length <= 0) continue;
      const int visible = decode::first_visible(length, step_.window);
      const int first = sequence_ == begin_.sequence ? begin_.block : decode::first_block(length, step_.window);
      const int end = sequence_ == end_.sequence ? end_.block : decode::end_block(length);
      if (first >= end) continue;
      const int first_tile = visible / tokens_, end_tile = divided_up(length, tokens_);
      const int tiles_per_page = CINCH_DECODE_PAGE / tokens_;
      item = {sequence_++,
              first * tiles_per_page > first_tile ? first * tiles_per_page : first_tile,
              end * tiles_per_page < end_tile ? end * tiles_per_page : end_tile,
              visible,
              length,
              share.count == 1 ? -1 : decode::partial_place(share, part_ - share.first)};
      return true;
    }
    return false;
  }

 private:
  const CinchDecodeStep& step_;
  const int tokens_;
  const decode::SplitPlan plan_;
  const int part_;
  const decode::PlanPoint begin_, end_;
  int sequence_;
};

}  // namespace cinch::sm90
