/* Calls of POSIX that the tests use and Windows lacks. */
#ifndef MAMBA_TESTS_POSIX_ON_WINDOWS_H
#define MAMBA_TESTS_POSIX_ON_WINDOWS_H

#if defined(_WIN32)
#include <stdlib.h>

static inline void setenv(const char *name, const char *value, int replace)
{
    (void)replace;
    _putenv_s(name, value);
}

static inline void unsetenv(const char *name)
{
    _putenv_s(name, "");
}

static inline void *aligned_alloc(size_t alignment, size_t bytes)
{
    (void)alignment;
    return malloc(bytes);
}

/* Windows has no files of this kind. */
static inline int mkfifo(const char *path, int mode)
{
    (void)path;
    (void)mode;
    return -1;
}
#endif

#endif
