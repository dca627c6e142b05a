/* Has this process been forked since the library was loaded?
 *
 * OpenMP's threads do not survive a fork. In the child, libgomp would wait for ever for the threads
 * that the parent had. A child therefore runs on one thread, even if this library ran on one in the
 * parent: it shares OpenMP's threads with other code, torch for instance.
 *
 * Include this header in one source of each library, which decides how many threads run. */
#ifndef MAMBA_SIMD_FORK_H
#define MAMBA_SIMD_FORK_H

#include <stdbool.h>

#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>

static bool forked;

static void note_fork(void)
{
    forked = true;
}

/* Runs when the library is loaded. A fork that cannot be noticed must be assumed. */
__attribute__((constructor)) static void watch_forks(void)
{
    forked = pthread_atfork(NULL, NULL, note_fork) != 0;
}
#else
static const bool forked = false;
#endif

#endif
