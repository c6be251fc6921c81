// The second phase of a decode step, when all parts of the split plan are done: merges the partial results of each
// sequence and head, and takes them through value_map where there is one. In the order of the parts, whoever does it:
// the same bits in every run.
//   out = sum_p 2^(lse_p - lse) out_p,  lse = log2 sum_p 2^lse_p
#pragma once

#include "attention/kernels/decode/results.h"
#include "attention/kernels/decode/split_plan.h"
#include "attention/kernels/decode/warp.h"

namespace cinch::decode {

/// Work is spread over all `blocks` thread blocks of the grid; all their threads call run().
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

  /// Copies value_map's rows of this block's first piece of work: useful before the other blocks are done.
  CINCH_DEVICE void prefetch() const {
    if (step_.v_head_dim > 0 && block_ < pieces()) load_map(block_);
  }
  CINCH_DEVICE void run() const {
    if (step_.v_head_dim > 0) {
      for (int piece = block_; piece < pieces(); piece += blocks_) map_values(piece);
    } else {
      merge_all();
    }
  }

 private:
  static constexpr int kColumns = 128;  // of a warp at once, 4 per lane: stride 32
  static constexpr int kBatch = 16;     // sequences of one mma

  CINCH_DEVICE int warps() const { return tiling_.warps * tiling_.row_groups; }
  CINCH_DEVICE int column_groups() const { return (tiling_.value_columns + kColumns - 1) / kColumns; }

  CINCH_DEVICE void merge_all() const {
    const int64_t works = static_cast<int64_t>(step_.batch) * step_.n_heads * column_groups();
    for (int64_t work = static_cast<int64_t>(block_) * warps() + thread_ / 32; work < works;
         work += static_cast<int64_t>(blocks_) * warps()) {
      const int group = static_cast<int>(work % column_groups());
      const int head = static_cast<int>(work / column_groups() % step_.n_heads);
      const int sequence = static_cast<int>(work / column_groups() / step_.n_heads);
      const PlanShare share = plan_.shares[sequence];
      if (share.count == 1) continue;  // its part has written it
      float sums[4];
      merge(share, sequence, head, group, sums);
      CINCH_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int column = group * kColumns + 32 * i + lane_;
        if (column < tiling_.value_columns)
          whole_out(job_, sequence, head)[column] = static_cast<uint16_t>(pack(T(), sums[i], 0));
      }
    }
  }

  /// sums: columns kColumns group + 32 i + lane. The first group writes the log-sum-exp.
  CINCH_DEVICE void merge(PlanShare share, int sequence, int head, int group, float (&sums)[4]) const {
    const float* const lses = partial_lse(job_);
    const float* const outs = partial_out(job_) + group * kColumns + lane_;
    const int columns = tiling_.value_columns - group * kColumns - lane_;
    float top = minus_infinity();
    for (int i = lane_; i < share.count; i += 32) top = max_of(top, fresh_float(lses + index(share, i, head)));
    for (int mask = 16; mask > 0; mask /= 2) top = max_of(top, shuffle_xor(top, mask));
    float total = 0;
    sums[0] = sums[1] = sums[2] = sums[3] = 0;
    for (int begin = 0; begin < share.count; begin += 32) {
      const int own = begin + lane_;
      const float weight = own < share.count ? exp2_fast(fresh_float(lses + index(share, own, head)) - top) : 0;
      const int count = share.count - begin < 32 ? share.count - begin : 32;
      CINCH_UNROLL_BY_8
      for (int i = 0; i < count; ++i) {
        const float factor = shuffle(weight, i);
        const float* const out = outs + index(share, begin + i, head) * tiling_.value_columns;
        total += factor;
        CINCH_UNROLL
        for (int c = 0; c < 4; ++c)
          if (32 * c < columns) sums[c] += factor * fresh_float(out + 32 * c);
      }
    }
    if (share.count > 0) {
      CINCH_UNROLL
      for (int c = 0; c < 4; ++c) sums[c] /= total;
    }
    if (group == 0 && lane_ == 0 && step_.lse != nullptr) {
      step_.lse[static_cast<int64_t>(sequence) * step_.n_heads + head] =
          share.count > 0 ? (top + log2f(total)) * kLn2 : minus_infinity();
    }
  }
  CINCH_DEVICE int64_t index(PlanShare share, int i, int head) const {
    return static_cast<int64_t>(partial_place(share, i)) * step_.n_heads + head;
  }

  // With value_map a piece of work is one head, 16 sequences and value_rows rows of the map: (16, R) x (rows, R)^T.
  CINCH_DEVICE int batches() const { return (step_.batch + kBatch - 1) / kBatch; }
  CINCH_DEVICE int row_groups() const { return (step_.v_head_dim + tiling_.value_rows - 1) / tiling_.value_rows; }
  CINCH_DEVICE int pieces() const { return step_.n_heads * batches() * row_groups(); }
  CINCH_DEVICE int piece_head(int piece) const { return piece / row_groups() / batches(); }
  CINCH_DEVICE int first_sequence(int piece) const { return piece / row_groups() % batches() * kBatch; }
  CINCH_DEVICE int first_value_row(int piece) const { return piece % row_groups() * tiling_.value_rows; }
  /// Rows of both factors in shared memory: R padded to whole mma depths, an odd number of 16 bytes.
  CINCH_DEVICE int pitch() const { return (tiling_.value_columns + 15) / 16 * 32 + 16; }
  CINCH_DEVICE Shared map_at() const { return shared_ + static_cast<Shared>(kBatch * pitch()); }

  CINCH_DEVICE void load_map(int piece) const {
    const int chunks = (tiling_.value_columns + 15) / 16 * 2, first = first_value_row(piece);
    const int rows = (tiling_.value_rows + 15) / 16 * 16;
    const uint16_t* const map =
        static_cast<const uint16_t*>(step_.value_map) + piece_head(piece) * step_.value_map_head_stride;
    for (int i = thread_; i < rows * chunks; i += 32 * warps()) {
      const int row = i / chunks, chunk = i % chunks;
      const bool valid =
          row < tiling_.value_rows && first + row < step_.v_head_dim && chunk * 8 < tiling_.value_columns;
      copy_async(map_at() + static_cast<Shared>(row * pitch() + chunk * 16),
                 map + (valid ? (first + row) * step_.value_map_row_stride + chunk * 8 : 0), valid);
    }
    copy_commit();
  }
  /// Merged sums of values of 16 sequences, as rows of 16-bit numbers.
  CINCH_DEVICE void load_sums(int piece) const {
    const int head = piece_head(piece);
    for (int work = thread_ / 32; work < kBatch * column_groups(); work += warps()) {
      const int row = work / column_groups(), group = work % column_groups(), sequence = first_sequence(piece) + row;
      float sums[4] = {0, 0, 0, 0};
      if (sequence < step_.batch) {
        const PlanShare share = plan_.shares[sequence];
        if (share.count == 1) {
          for (int c = 0; c < 4; ++c) {
            const int column = group * kColumns + 32 * c + lane_;
            if (column < tiling_.value_columns)
              sums[c] = T::to_float(fresh_half(whole_out(job_, sequence, head) + column));
          }
        } else {
          merge(share, sequence, head, group, sums);
        }
      }
      const int padded = (tiling_.value_columns + 15) / 16 * 16;
      CINCH_UNROLL
      for (int c = 0; c < 4; ++c) {
        const float right = shuffle_xor(sums[c], 1);
        const int column = group * kColumns + 32 * c + lane_;
        if (lane_ % 2 == 0 && column < padded)
          shared_store(shared_ + static_cast<Shared>(row * pitch() + column * 2), pack(T(), sums[c], right));
      }
    }
  }
  CINCH_DEVICE void map_values(int piece) const {
    if (piece != block_) load_map(piece);
    load_sums(piece);
    copy_wait(0);
    sync_block();
    const int tiles = (tiling_.value_rows + 15) / 16;
    for (int tile = thread_ / 32; tile < tiles; tile += warps()) {
      float results[2][4] = {};
      const Shared sums = shared_ + static_cast<Shared>((lane_ / 8 % 2 * 8 + lane_ % 8) * pitch() + lane_ / 16 * 16);
      const Shared map =
          map_at() + static_cast<Shared>((tile * 16 + lane_ / 16 * 8 + lane_ % 8) * pitch() + lane_ / 8 % 2 * 16);
      const int depth = (tiling_.value_columns + 15) / 16;
      CINCH_UNROLL_BY_4
      for (int k = 0; k < depth; ++k) {
        uint32_t a[4], b[4];
        load_matrices(a, sums + static_cast<Shared>(32 * k));
        load_matrices(b, map + static_cast<Shared>(32 * k));
        multiply_add(T(), results[0], a, b[0], b[1]);
        multiply_add(T(), results[1], a, b[2], b[3]);
      }
      write_values(piece, tile, results);
    }
    sync_block();
  }
  CINCH_DEVICE void write_values(int piece, int tile, const float (&results)[2][4]) const {
    const int head = piece_head(piece);
    for (int n = 0; n < 2; ++n) {
      for (int i = 0; i < 4; ++i) {
        const int sequence = first_sequence(piece) + lane_ / 4 + i / 2 * 8;
        const int inside = tile * 16 + 8 * n + 2 * (lane_ % 4) + i % 2, row = first_value_row(piece) + inside;
        if (sequence >= step_.batch || inside >= tiling_.value_rows || row >= step_.v_head_dim) continue;
        float value = results[n][i];
        if (step_.value_bias != nullptr && step_.lengths[sequence] > 0)
          value += T::to_float(static_cast<const uint16_t*>(step_.value_bias)[head * step_.v_head_dim + row]);
        (static_cast<uint16_t*>(step_.out) + sequence * step_.out_batch_stride + head * step_.out_head_stride)[row] =
            static_cast<uint16_t>(pack(T(), value, 0));
      }
    }
  }

  const DecodeJob& job_;
  const CinchDecodeStep& step_;
  const Tiling& tiling_;
  SplitPlan plan_;
  int block_, blocks_, thread_, lane_;
  Shared shared_;
};

}  // namespace cinch::decode
