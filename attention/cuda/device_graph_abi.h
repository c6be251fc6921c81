/* The border between cinch and libcinch_graph.so, which is LibTorch's own CUDA graphs: the allocator has to know of a
 * recording. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Functions that return int32_t give 0, or -1 with the reason in `error` (0-terminated, at most `error_size` bytes);
 * create gives null then. */

/* A graph with a stream of its own to record on. */
void* cinch_graph_create(int32_t device, char* error, uint64_t error_size);
/* Calls work(context) with the graph's stream as the current one, after what is on the current stream, which then waits
 * for it. record = 1: nothing runs, everything is recorded. `work` must not throw. */
int32_t cinch_graph_run(void* graph, int32_t record, void (*work)(void* context), void* context, char* error,
                        uint64_t error_size);
/* On the current stream. */
int32_t cinch_graph_replay(void* graph, char* error, uint64_t error_size);
/* Waits for the device first. */
void cinch_graph_destroy(void* graph);

#ifdef __cplusplus
}
#endif
