/* What every function of the training kernels shares: status, tensors, the choice of a kernel. */
#ifndef MNIST_MAMBA_SCAN_TYPES_H
#define MNIST_MAMBA_SCAN_TYPES_H

#include <stddef.h>

typedef enum ScanStatus {
    SCAN_OK = 0,
    SCAN_ERROR_DIMS = 1, /* a dimension or the thread count is smaller than 1 */
    SCAN_ERROR_NULL = 2, /* a required pointer is NULL */
    SCAN_ERROR_ISA = 3,  /* no kernel for this instruction set and element type on this machine */
} ScanStatus;

typedef enum ScanType {
    SCAN_FLOAT32 = 0,
    SCAN_FLOAT64 = 1, /* for gradient checks: scalar code on any machine */
} ScanType;

/* Instruction sets, the better the higher. */
typedef enum ScanIsa {
    SCAN_ISA_SCALAR = 0,
    SCAN_ISA_NEON = 1,
    SCAN_ISA_AVX2 = 2,   /* with FMA */
    SCAN_ISA_AVX512 = 3, /* F and DQ */
} ScanIsa;

/* The best one that this library was built with and this machine has. */
ScanIsa scan_best_isa(void);

/* 1 where kernels for it were built in and this machine can run them, else 0. */
int scan_isa_works(ScanIsa isa);

/* A strided 3-d tensor. Strides count elements and may be negative, which reverses the time: data
 * is always the element that is read first. An input's may be 0 (broadcast). */
typedef struct ScanTensor {
    const void *data;
    ptrdiff_t stride[3]; /* (batch, channel or state, time) */
} ScanTensor;

typedef struct ScanMutableTensor {
    void *data;
    ptrdiff_t stride[3];
} ScanMutableTensor;

#endif
