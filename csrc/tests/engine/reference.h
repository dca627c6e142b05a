/* The forward pass in double precision, written straight from the paper and docs/format.md, with
 * none of the engine's code; and the architectures that it is compared on. */
#ifndef MAMBA_TESTS_REFERENCE_H
#define MAMBA_TESTS_REFERENCE_H

#include "tiny_model.h"

/* The largest magnitudes in a pass: of any value, and of a sum if its terms all had one sign. The
 * second one bounds the sums in any order of their terms. */
struct magnitudes {
    double value, terms;
};

/* Returns logits [n_classes], valid until the next call, for pixels [height, width, channels]; sets
 * *largest unless it is NULL. */
const double *reference(const struct tiny_model *tiny, const float *pixels,
                        struct magnitudes *largest);

/* Returns dims for architecture `i` of 96: they vary with i, and some are odd. Images have 7 x 9
 * pixels. */
mamba_info varied(uint32_t i);

#endif
