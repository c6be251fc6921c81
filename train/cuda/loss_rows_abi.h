/* The part of the loss that libcinch_cuda.so has. Plain values only: both sides include this. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A chunk of logits on the device, rows of `vocabulary` numbers one behind the other. */
struct CinchLossRows {
  int32_t element; /* CinchElement of all logits */
  int64_t rows, vocabulary;
  void* student;          /* (rows, vocabulary); with `writes_gradient` the gradient afterwards */
  const void* teacher;    /* (rows, vocabulary), or null */
  const int64_t* targets; /* (rows); below 0: the row does not count */
  float* cross_entropy;   /* (rows), nats; 0 where the row does not count */
  float* distillation;    /* (rows), KL(teacher || student), nats; 0 without a teacher */
  float cross_entropy_weight, distillation_weight; /* of the gradient */
  float softcap;                                   /* logits are softcap * tanh(logit / softcap); 0: as they are */
  int32_t writes_gradient; /* d(weighted sum of both losses of the row) / d(student's logit before the cap) */
};

/* Starts the kernel on `stream` (a cudaStream_t); 0, or -1 with the reason in `error` (0-terminated). */
typedef int32_t (*CinchCudaLossRows)(const struct CinchLossRows* rows, void* stream, char* error, uint64_t error_size);
int32_t cinch_cuda_loss_rows(const struct CinchLossRows* rows, void* stream, char* error, uint64_t error_size);

#ifdef __cplusplus
}
#endif
