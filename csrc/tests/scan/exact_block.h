/* The residual block by its definition, in double precision. */
#ifndef MAMBA_TESTS_SCAN_EXACT_BLOCK_H
#define MAMBA_TESTS_SCAN_EXACT_BLOCK_H

#include "exact_scan.h"
#include "mamba_block.h"

enum { CONV_WEIGHT, CONV_BIAS, X_PROJ, DT_PROJ, DT_BIAS, A_LOG, SKIP, DIRECTION_WEIGHTS };
enum { NORM, IN_PROJ, OUT_PROJ, SHARED_WEIGHTS };
enum { ALL_WEIGHTS = SHARED_WEIGHTS + MAX_DIRECTIONS * DIRECTION_WEIGHTS };

/* A block: its input and weights, its output and gradients, and the exact values of all. The
 * weights of direction i start at SHARED_WEIGHTS + i * DIRECTION_WEIGHTS. */
struct block {
    struct block_dims dims;
    struct tensor input, out, grad_out, grad_input; /* (batch, length, d_model) */
    struct tensor weight[ALL_WEIGHTS], grad[ALL_WEIGHTS];
    bool given[ALL_WEIGHTS];
};

static inline int direction_start(ptrdiff_t direction)
{
    return SHARED_WEIGHTS + (int)direction * DIRECTION_WEIGHTS;
}

/* Compute every exact output and gradient from the exact input, weights and gradient of the output.
 */
void exact_block(struct block *block);

#endif
