/* The selective scan by its definition, in double precision. */
#ifndef MAMBA_TESTS_SCAN_EXACT_SCAN_H
#define MAMBA_TESTS_SCAN_EXACT_SCAN_H

#include "random_tensors.h"
#include "selective_scan.h"

/* One scan: its inputs, its output and gradients, and the exact values of all. */
struct scan {
    struct scan_dims dims;
    struct tensor u, delta, b, c, z, a, d, bias, w;
    struct tensor out, grad_out;
    struct tensor grad_u, grad_delta, grad_b, grad_c, grad_z, grad_a, grad_d, grad_bias, grad_w;
    bool has_z, has_d, has_bias;
};

/* Random inputs; outputs and gradients that are still wrong. z, D and the bias are given: the
 * caller may take each away. */
struct scan make_scan(const struct scan_dims *dims, bool channels_inner, bool reversed);
void free_scan(struct scan *scan);

/* A[d, n] = (n + 1) A[d, 0], for A (channels, states). */
void tie_states(struct tensor *a, ptrdiff_t states);

double sigmoid(double x);
double silu(double x);
double silu_slope(double x);

/* Compute every exact output and gradient from the exact inputs: one channel of one item at a time,
 * with every state kept. */
void exact_scan(struct scan *scan);

#endif
