#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "commands.h"
#include "error.h"

double now_seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

mamba_status run_command(command_function command, const struct options *options,
                         mamba_error *error)
{
    mamba_model *model;
    const char *path = options->positional[0];
    const double start = now_seconds();
    mamba_status status = options->access == FILE_COPIED ? mamba_model_read(&model, path, error)
                                                         : mamba_model_open(&model, path, error);
    const struct job job = {options, model, now_seconds() - start};
    if (status == MAMBA_OK)
        status = command(&job, error);
    mamba_model_close(model);
    return status;
}

size_t argmax(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

int choose_threads(int wanted, int otherwise)
{
    if (wanted > 1 && mamba_max_threads() == 1) {
        fprintf(stderr, "mamba: warning: built for one thread; run `make omp` for more\n");
        return 1;
    }
    return wanted ? wanted : otherwise;
}

static bool write_and_close(int fd, const char *data, size_t bytes)
{
    bool good = true;
    while (good && bytes > 0) {
        const ssize_t written = write(fd, data, bytes);
        if (written < 0) {
            good = errno == EINTR;
        } else {
            data += written;
            bytes -= (size_t)written;
        }
    }
    good = good && fsync(fd) == 0;
    return close(fd) == 0 && good;
}

mamba_status write_file(const char *path, const void *data, size_t bytes, mamba_error *error)
{
    struct stat existing; /* a rename over /dev/null would replace the device */
    const bool exists = stat(path, &existing) == 0;
    if (!exists && errno != ENOENT) /* also a path longer than PATH_MAX */
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot stat: %s", strerror(errno));
    if (exists && !S_ISREG(existing.st_mode))
        return mamba_fail(error, MAMBA_ERR_IO, path, "not a regular file");
    char temporary[PATH_MAX + 32];
    snprintf(temporary, sizeof temporary, "%s.tmp.%ld", path, (long)getpid());
    unlink(temporary); /* left by a killed process; O_EXCL follows no link planted since */
    const int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot create: %s", strerror(errno));
    if (write_and_close(fd, data, bytes) && rename(temporary, path) == 0)
        return MAMBA_OK;
    mamba_fail(error, MAMBA_ERR_IO, path, "cannot write: %s", strerror(errno));
    unlink(temporary);
    return MAMBA_ERR_IO;
}
