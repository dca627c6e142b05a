/* Types that every function of the training kernels shares: status, element type, instruction set,
 * tensors.
 *
 * Sizes and indices are ptrdiff_t, not size_t: they are multiplied by strides, which are negative
 * where time runs backwards. */
#ifndef MAMBA_SCAN_TYPES_H
#define MAMBA_SCAN_TYPES_H

#include <stdbool.h>
#include <stddef.h>

enum scan_status {
    SCAN_OK = 0,
    SCAN_ERROR_DIMS = 1, /* a dimension or the thread count is smaller than 1 */
    SCAN_ERROR_NULL = 2, /* a required pointer is NULL */
    SCAN_ERROR_ISA = 3,  /* no kernel for this instruction set and element type on this machine */
};

enum scan_type {
    SCAN_FLOAT32 = 0,
    SCAN_FLOAT64 = 1, /* for gradient checks: scalar code on any machine */
};

/* Instruction sets, in ascending order of preference. */
enum scan_isa {
    SCAN_ISA_SCALAR = 0,
    SCAN_ISA_NEON = 1,
    SCAN_ISA_AVX2 = 2,   /* with FMA */
    SCAN_ISA_AVX512 = 3, /* F and DQ, with FMA */
};

/* The best instruction set that this library was built with and this machine has. */
enum scan_isa mamba_scan_best_isa(void);

/* Were kernels for it built in, and can this machine run them? */
bool mamba_scan_isa_works(enum scan_isa isa);

/* A strided 3-d tensor. Strides count elements. A negative one reverses time: data is always the
 * element that is read first. An input's stride may be 0 (broadcast). */
struct scan_tensor {
    const void *data;
    ptrdiff_t stride[3]; /* (batch, channel or state, time) */
};

struct scan_mutable_tensor {
    void *data;
    ptrdiff_t stride[3];
};

#endif
