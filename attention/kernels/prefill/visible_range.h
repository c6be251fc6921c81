// Which keys a query sees, and which queries see a key: of one token and of stretches of tokens.
#pragma once

#include "attention/kernels/prefill/prefill_abi.h"
#include "attention/kernels/warp/device.h"

namespace cinch::prefill {

/// [begin, end); begin >= end: none.
struct Range {
  int begin, end;
};

CINCH_HOST_DEVICE int min_of(int a, int b) { return a < b ? a : b; }
CINCH_HOST_DEVICE int max_of(int a, int b) { return a > b ? a : b; }

/// Keys that a query sees. Neither end falls along the queries: of a stretch, some query sees keys in
/// [begin of the first, end of the last), and all see those in [begin of the last, end of the first).
CINCH_HOST_DEVICE Range keys_of(const CinchPrefill& work, int sequence, int query) {
  const int own = work.first_query + query;
  int begin = work.window > 0 ? max_of(0, own - work.window + 1) : 0;
  if (work.first_keys != nullptr) begin = max_of(begin, work.first_keys[sequence * work.first_keys_stride + query]);
  return {begin, min_of(work.keys, own + 1)};
}

/// Queries that see some key of a range.
CINCH_HOST_DEVICE Range queries_of(const CinchPrefill& work, int sequence, Range keys) {
  int begin = max_of(0, keys.begin - work.first_query), end = work.queries;
  if (work.window > 0) end = min_of(end, keys.end - 1 + work.window - work.first_query);
  if (work.first_keys == nullptr) return {begin, end};
  const int32_t* const starts = work.first_keys + sequence * work.first_keys_stride;
  for (int low = begin; low < end;) {  // the first query whose document starts behind the keys
    const int middle = low + (end - low) / 2;
    if (starts[middle] < keys.end) {
      low = middle + 1;
    } else {
      end = middle;
    }
  }
  return {begin, end};
}

}  // namespace cinch::prefill
