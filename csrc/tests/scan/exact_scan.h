/* The plain definition of the selective scan in double precision. */
#ifndef MNIST_MAMBA_TESTS_EXACT_SCAN_H
#define MNIST_MAMBA_TESTS_EXACT_SCAN_H

#include "random_tensors.h"
#include "selective_scan.h"

/* One scan: its inputs, and the gradients and the output with their exact values. */
typedef struct Scan {
    ScanDims dims;
    Tensor u, delta, b, c, z, a, d, bias, w;
    Tensor out, grad_out;
    Tensor grad_u, grad_delta, grad_b, grad_c, grad_z, grad_a, grad_d, grad_bias, grad_w;
    int has_z, has_d, has_bias;
} Scan;

/* Random inputs; outputs and gradients that are not yet right. With z, D and a bias, each of which
 * the caller may take away. */
Scan make_scan(const ScanDims *dims, int channels_inner, int reversed);
void free_scan(Scan *scan);

/* A (channels, states): state n decays n times as fast as the first. */
void tie_states(Tensor *a, ptrdiff_t states);

double sigmoid(double x);
double silu(double x);
double silu_slope(double x);

/* Every exact output and gradient from the exact inputs: one sequence of one channel at a time,
 * every state kept. */
void exact_scan(Scan *scan);

#endif
