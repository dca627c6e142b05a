/* A check that a kernel keeps the mode in which the processor counts denormals, or takes them for
 * 0. */
#ifndef MAMBA_TESTS_FLOAT_MODE_H
#define MAMBA_TESTS_FLOAT_MODE_H

#include "check.h"
#include "denormals.h"

#include <float.h>

/* Return whether denormals count in this thread. */
static bool denormals_count(void)
{
    volatile float smallest = FLT_MIN;
    volatile float half = smallest / 2;
    return half != 0;
}

/* Return whether they count in each of three threads, which inherit the mode of the one that
 * creates them. */
static bool denormals_count_everywhere(void)
{
    bool count = true;
#ifdef _OPENMP
#pragma omp parallel num_threads(3) reduction(&& : count)
#endif
    count = denormals_count();
    return count;
}

/* Run a pass, which must leave the mode of its caller and of its threads as it was. */
#define CHECK_MODE_KEPT(pass, what, isa)                                                           \
    do {                                                                                           \
        CHECK(denormals_count_everywhere(), "isa %d, before the %s", (int)(isa), what);            \
        pass;                                                                                      \
        CHECK(denormals_count_everywhere(), "isa %d, after the %s", (int)(isa), what);             \
        const uint64_t mode = denormals_off();                                                     \
        const bool count = denormals_count();                                                      \
        pass;                                                                                      \
        CHECK(denormals_count() == count, "isa %d, after the %s without", (int)(isa), what);       \
        denormals_restore(mode);                                                                   \
    } while (0)

#endif
