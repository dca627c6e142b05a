#include "threads.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include "mamba.h"

int mamba_max_threads(void)
{
#ifdef _OPENMP
    int threads = omp_get_max_threads();
    return threads > MAX_THREADS ? MAX_THREADS : threads;
#else
    return 1;
#endif
}
