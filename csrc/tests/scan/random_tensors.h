/* Random tensors, and the distance of a kernel's result from its exact value. */
#ifndef MAMBA_TESTS_SCAN_RANDOM_TENSORS_H
#define MAMBA_TESTS_SCAN_RANDOM_TENSORS_H

#include "scan_types.h"

#include <stdint.h>

/* The generator's state: set it back to draw the same numbers again. */
extern uint64_t random_state;

double uniform(double low, double high);
ptrdiff_t between(ptrdiff_t low, ptrdiff_t high); /* both included */
bool coin(void);

/* A dense (batch, channels, length) tensor of doubles, and the kernel's copy of it: of the kernel's
 * element type, with channels or time innermost, time forward or reversed. */
struct tensor {
    ptrdiff_t shape[3];
    double *exact;
    void *memory;
    struct scan_mutable_tensor view;
    bool is_double;
};

struct tensor make_tensor(ptrdiff_t batch, ptrdiff_t channels, ptrdiff_t length, bool is_double,
                          bool channels_inner, bool reversed, double low, double high);

/* A parameter vector or matrix: (1, count, 1). */
struct tensor make_parameter(ptrdiff_t count, bool is_double, double low, double high);

/* Set element i, counted in the order of the dense tensor (time innermost), and its exact value. */
void set_element(struct tensor *tensor, ptrdiff_t i, double value);

void free_tensor(struct tensor *tensor);
void clear_exact(struct tensor *tensor);
size_t count_elements(const struct tensor *tensor);
size_t count_bytes(const struct tensor *tensor);
struct scan_tensor input(const struct tensor *tensor);

/* Relative L2 distance from the exact values, and the limit of what rounding may cause. */
double relative_distance(const struct tensor *got);
double tolerance(const struct tensor *got);

/* Relative L2 distance between the exact values of two tensors of one shape. */
double exact_distance(const struct tensor *got, const struct tensor *wanted);

/* Memory of exactly this size, so that ASan sees an overrun, and full of NaN, so that a read before
 * the first write shows. */
void *nan_memory(size_t bytes);

#endif
