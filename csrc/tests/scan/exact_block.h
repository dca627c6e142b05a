/* The plain definition of the residual block in double precision. */
#ifndef MNIST_MAMBA_TESTS_EXACT_BLOCK_H
#define MNIST_MAMBA_TESTS_EXACT_BLOCK_H

#include "exact_scan.h"
#include "mamba_block.h"

enum { CONV_WEIGHT, CONV_BIAS, X_PROJ, DT_PROJ, DT_BIAS, A_LOG, SKIP, DIRECTION_WEIGHTS };
enum { NORM, IN_PROJ, OUT_PROJ, SHARED_WEIGHTS };
enum { ALL_WEIGHTS = SHARED_WEIGHTS + MAX_DIRECTIONS * DIRECTION_WEIGHTS };

/* A block: its input and weights, and its output and gradients with their exact values. Weights of
 * direction i start at SHARED_WEIGHTS + i * DIRECTION_WEIGHTS. */
typedef struct Block {
    BlockDims dims;
    Tensor input, out, grad_out, grad_input; /* (batch, length, d_model) */
    Tensor weight[ALL_WEIGHTS], grad[ALL_WEIGHTS];
    int given[ALL_WEIGHTS];
} Block;

static inline int direction_start(ptrdiff_t direction)
{
    return SHARED_WEIGHTS + (int)direction * DIRECTION_WEIGHTS;
}

/* Every exact output and gradient from the exact input, weights and output's gradient. */
void exact_block(Block *block);

#endif
