#ifndef MAMBA_ENGINE_THREADS_H
#define MAMBA_ENGINE_THREADS_H

enum { MAX_THREADS = 1024 }; /* that a batch may ask for */

#endif
