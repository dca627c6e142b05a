/* Checks that a kernel keeps its caller's floating-point mode, and does not depend on it. The
 * includer defines _GNU_SOURCE. */
#ifndef MAMBA_TESTS_FLOAT_MODE_H
#define MAMBA_TESTS_FLOAT_MODE_H

#include "check.h"
#include "denormals.h"

#include <fenv.h>
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

enum { USUAL_MODE, LAST_ROUNDING = 3, TRAPS, CALLER_MODES };

/* Set the mode of a caller: the usual one, three that round otherwise, and one in which a rounded
 * result raises SIGFPE, on processors that can. */
static void set_caller_mode(int mode)
{
    static const int roundings[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    fesetround(roundings[mode <= LAST_ROUNDING ? mode : USUAL_MODE]);
    if (mode == TRAPS)
        feenableexcept(FE_ALL_EXCEPT);
    else
        fedisableexcept(FE_ALL_EXCEPT);
}

#endif
