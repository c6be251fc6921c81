// What follows when all parts of the split plan are done: merge() brings the partial results of each sequence together,
// map() takes them through value_map where there is one. Sums go in a fixed order, whoever makes them: the same bits in
// every run.
//   out = sum_p 2^(lse_p - lse) out_p,  lse = log2 sum_p 2^lse_p
#pragma once

#include "attention/kernels/decode/results.h"
#include "attention/kernels/decode/split_plan.h"
#include "attention/kernels/warp/warp.h"

namespace cinch::decode {

/// Work is spread over all `blocks` thread blocks of the grid; all their threads call these functions.
template <class T>
class Combine {
 public:
  CINCH_DEVICE Combine(const DecodeJob& job, int block, int blocks, int thread)
      : job_(job),
        step_(job.step),
        tiling_(job.tiling),
        plan_(SplitPlan::at(const_cast<int32_t*>(job.step.plan), job.tiling.parts, job.step.batch)),
        block_(block),
        blocks_(blocks),
        thread_(thread),
        lane_(thread % 32),
        shared_(shared_begin()) {}

  // Both useful while other blocks still stream.
  /// Reads who holds the first sequence that this block merges.
  CINCH_DEVICE void prefetch_share() { first_share_ = share_of(block_); }
  /// Copies value_map's rows of this block's first piece of work.
  CINCH_DEVICE void prefetch_map() const {
    if (block_ < pieces()) load_map(block_);
  }

  /// A sequence's results lie side by side: H x value columns numbers, taken four at a time ("quads"). Where parts are
  /// few per sequence, each thread sums them for 4 quads; else groups of threads share the parts of 16 quads, as long
  /// chains of loads would take most of a short step.
  CINCH_DEVICE void merge() const {
    for (int work = block_; work < step_.batch * merge_chunks(); work += blocks_) {
      const int sequence = work / merge_chunks(), first = work % merge_chunks() * merge_columns();
      const PlanShare share = work == block_ ? first_share_ : share_of(work);
      if (share.count == 1) continue;  // its part has written it
      if (tiling_.merge_groups == 1) {
        merge_wide(share, sequence, first);
      } else {
        merge_deep(share, sequence, first);
      }
    }
  }

  /// out = value_map out + value_bias of all sequences and heads. Needs what merge() of all blocks has written.
  CINCH_DEVICE void map() const {
    for (int piece = block_; piece < pieces(); piece += blocks_) {
      if (piece != block_) load_map(piece);
      load_sums(piece);
      copy_wait(0);
      sync_block();
      for (int tile = thread_ / 32; tile < (tiling_.value_rows + 15) / 16; tile += threads() / 32)
        map_tile(piece, tile);
      sync_block();
    }
  }

 private:
  /// A running softmax over partial results: sum of 2^(lse - top) and of that times four columns.
  struct Sums {
    float top = minus_infinity(), total = 0, columns[4] = {0, 0, 0, 0};

    CINCH_DEVICE void add(float lse, float weight, const float (&values)[4]) {
      const float higher = max_of(top, lse), base = higher == minus_infinity() ? 0 : higher;
      const float keep = exp2_fast(top - base), factor = exp2_fast(lse - base);
      total = total * keep + weight * factor;
      CINCH_UNROLL
      for (int i = 0; i < 4; ++i) columns[i] = columns[i] * keep + values[i] * factor;
      top = higher;
    }
  };

  CINCH_DEVICE int threads() const { return 32 * tiling_.warps * tiling_.row_groups; }
  CINCH_DEVICE int row_quads() const { return tiling_.value_columns / 4; }
  CINCH_DEVICE int all_quads() const { return step_.n_heads * row_quads(); }
  CINCH_DEVICE int merge_columns() const { return merge_quads(tiling_); }
  CINCH_DEVICE int merge_chunks() const { return decode::merge_chunks(step_, tiling_); }
  CINCH_DEVICE PlanShare share_of(int work) const {
    const int sequence = work / merge_chunks();
    return sequence < step_.batch ? plan_.shares[sequence] : PlanShare{0, 0};
  }

  /// Adds parts `first`, first + step, .. of kColumns quads, kParts of them at once: loads first, then sums.
  template <int kParts, int kColumns>
  CINCH_DEVICE void add_parts(PlanShare share, int first, int step, int quad, int quad_step,
                              Sums (&sums)[kColumns]) const {
    const float* const lses = partial_lse(job_);
    const float* const outs = partial_out(job_);
    for (int begin = first; begin < share.count; begin += kParts * step) {
      float lse[kParts][kColumns], values[kParts][kColumns][4];
      CINCH_UNROLL
      for (int p = 0; p < kParts; ++p) {
        const int index = begin + p * step;
        const int64_t place = partial_place(share, index < share.count ? index : first);
        CINCH_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          const int at = quad + c * quad_step;
          const bool valid = index < share.count && at < all_quads();
          lse[p][c] = minus_infinity();
          values[p][c][0] = values[p][c][1] = values[p][c][2] = values[p][c][3] = 0;
          if (!valid) continue;
          lse[p][c] = fresh_float(lses + place * step_.n_heads + at / row_quads());
          fresh_floats(outs + (place * all_quads() + at) * 4, values[p][c]);
        }
      }
      CINCH_UNROLL
      for (int p = 0; p < kParts; ++p) {
        CINCH_UNROLL
        for (int c = 0; c < kColumns; ++c) sums[c].add(lse[p][c], 1, values[p][c]);
      }
    }
  }
  CINCH_DEVICE void merge_wide(PlanShare share, int sequence, int first) const {
    Sums sums[4];
    add_parts<3, 4>(share, 0, 1, first + thread_, threads(), sums);
    CINCH_UNROLL
    for (int c = 0; c < 4; ++c) write(sums[c], sequence, first + thread_ + c * threads());
  }
  CINCH_DEVICE void merge_deep(PlanShare share, int sequence, int first) const {
    const int columns = merge_columns(), group = thread_ / columns, column = thread_ % columns;
    Sums sums[1];
    add_parts<8, 1>(share, group, tiling_.merge_groups, first + column, 0, sums);
    const Shared own = shared_ + static_cast<Shared>(thread_ * kMergeBytes);
    shared_store(own, sums[0].top);
    shared_store(own + 4, sums[0].total);
    for (int i = 0; i < 4; ++i) shared_store(own + static_cast<Shared>(8 + 4 * i), sums[0].columns[i]);
    sync_block();
    if (group == 0) {
      Sums all;
      for (int other = 0; other < tiling_.merge_groups; ++other) {
        const Shared from = shared_ + static_cast<Shared>((other * columns + column) * kMergeBytes);
        float values[4];
        for (int i = 0; i < 4; ++i) values[i] = shared_float(from + static_cast<Shared>(8 + 4 * i));
        all.add(shared_float(from), shared_float(from + 4), values);
      }
      write(all, sequence, first + column);
    }
    sync_block();
  }
  CINCH_DEVICE void write(const Sums& sums, int sequence, int quad) const {
    if (quad >= all_quads()) return;
    const int head = quad / row_quads(), column = quad % row_quads() * 4;
    const float factor = sums.total > 0 ? 1 / sums.total : 0;
    auto* const to = reinterpret_cast<uint32_t*>(whole_out(job_, sequence, head) + column);
    to[0] = pack(T(), sums.columns[0] * factor, sums.columns[1] * factor);
    to[1] = pack(T(), sums.columns[2] * factor, sums.columns[3] * factor);
    if (column == 0 && step_.lse != nullptr) {
      step_.lse[static_cast<int64_t>(sequence) * step_.n_heads + head] =
          sums.total > 0 ? (sums.top + log2f(sums.total)) * kLn2 : minus_infinity();
    }
  }

  // A piece of map's work is one head, 16 sequences and value_rows rows of the map: (16, R) x (rows, R)^T.
  CINCH_DEVICE int batches() const { return (step_.batch + kMapBatch - 1) / kMapBatch; }
  CINCH_DEVICE int row_pieces() const { return (step_.v_head_dim + tiling_.value_rows - 1) / tiling_.value_rows; }
  CINCH_DEVICE int pieces() const { return map_pieces(step_, tiling_); }
  CINCH_DEVICE int piece_head(int piece) const { return piece / row_pieces() / batches(); }
  CINCH_DEVICE int first_sequence(int piece) const { return piece / row_pieces() % batches() * kMapBatch; }
  CINCH_DEVICE int first_value_row(int piece) const { return piece % row_pieces() * tiling_.value_rows; }
  /// Rows of both factors in shared memory: R padded to whole mma depths, an odd number of 16 bytes apart.
  CINCH_DEVICE int chunks() const { return (tiling_.value_columns + 15) / 16 * 2; }
  CINCH_DEVICE int pitch() const { return chunks() * 16 + 16; }
  CINCH_DEVICE Shared map_at() const { return shared_ + static_cast<Shared>(tiling_.map_offset); }

  CINCH_DEVICE void load_map(int piece) const {
    const int first = first_value_row(piece), rows = (tiling_.value_rows + 15) / 16 * 16;
    const uint16_t* const map =
        static_cast<const uint16_t*>(step_.value_map) + piece_head(piece) * step_.value_map_head_stride;
    for (int i = thread_; i < rows * chunks(); i += threads()) {
      const int row = i / chunks(), chunk = i % chunks();
      const bool valid =
          row < tiling_.value_rows && first + row < step_.v_head_dim && chunk * 8 < tiling_.value_columns;
      copy_async(map_at() + static_cast<Shared>(row * pitch() + chunk * 16),
                 map + (valid ? (first + row) * step_.value_map_row_stride + chunk * 8 : 0), valid);
    }
    copy_commit();
  }
  CINCH_DEVICE void load_sums(int piece) const {
    const int head = piece_head(piece), first = first_sequence(piece);
    for (int i = thread_; i < kMapBatch * chunks(); i += threads()) {
      const int row = i / chunks(), chunk = i % chunks();
      const bool valid = first + row < step_.batch && chunk * 8 < tiling_.value_columns;
      copy_async(shared_ + static_cast<Shared>(row * pitch() + chunk * 16),
                 whole_out(job_, valid ? first + row : 0, head) + (valid ? chunk * 8 : 0), valid);
    }
    copy_commit();
  }
  CINCH_DEVICE void map_tile(int piece, int tile) const {
    float results[2][4] = {};
    const Shared sums = shared_ + static_cast<Shared>(lane_ % 16 * pitch() + lane_ / 16 * 16);
    const Shared map =
        map_at() + static_cast<Shared>((tile * 16 + lane_ / 16 * 8 + lane_ % 8) * pitch() + lane_ / 8 % 2 * 16);
    CINCH_UNROLL_BY_4
    for (int k = 0; k < chunks() / 2; ++k) {
      uint32_t a[4], b[4];
      load_matrices(a, sums + static_cast<Shared>(32 * k));
      load_matrices(b, map + static_cast<Shared>(32 * k));
      multiply_add(T(), results[0], a, b[0], b[1]);
      multiply_add(T(), results[1], a, b[2], b[3]);
    }
    const int head = piece_head(piece);
    CINCH_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int sequence = first_sequence(piece) + lane_ / 4 + i / 2 % 2 * 8;
      const int inside = tile * 16 + i / 4 * 8 + 2 * (lane_ % 4) + i % 2, row = first_value_row(piece) + inside;
      if (sequence >= step_.batch || inside >= tiling_.value_rows || row >= step_.v_head_dim) continue;
      float value = results[i / 4][i % 4];
      if (step_.value_bias != nullptr && step_.lengths[sequence] > 0)
        value += T::to_float(static_cast<const uint16_t*>(step_.value_bias)[head * step_.v_head_dim + row]);
      (static_cast<uint16_t*>(step_.out) + sequence * step_.out_batch_stride + head * step_.out_head_stride)[row] =
          static_cast<uint16_t>(pack(T(), value, 0));
    }
  }

  const DecodeJob& job_;
  const CinchDecodeStep& step_;
  const Tiling& tiling_;
  SplitPlan plan_;
  int block_, blocks_, thread_, lane_;
  Shared shared_;
  PlanShare first_share_{0, 0};
};

}  // namespace cinch::decode
