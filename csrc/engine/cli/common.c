#define _XOPEN_SOURCE 700 /* POSIX 2008 and its realpath */
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
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

/* Returns whether stdout or stderr goes to `file`, as after `--logits /dev/stdout > file`. */
static bool is_standard_stream(const struct stat *file)
{
    for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) {
        struct stat stream;
        if (fstat(fd, &stream) == 0 && stream.st_dev == file->st_dev &&
            stream.st_ino == file->st_ino)
            return true;
    }
    return false;
}

/* Sets `target` to the file that `path` names, after all links, and *kept to the mode and the owner
 * that its new content gets. */
static mamba_status find_target(char target[PATH_MAX], struct stat *kept, const char *path,
                                mamba_error *error)
{
    if (lstat(path, kept) != 0) {
        if (errno != ENOENT) /* also a path longer than PATH_MAX */
            return mamba_fail(error, MAMBA_ERR_IO, path, "cannot stat: %s", strerror(errno));
        const mode_t mask = umask(0); /* umask(2) cannot be read without being set */
        umask(mask);
        *kept = (struct stat){.st_mode = 0666 & ~mask, .st_uid = (uid_t)-1, .st_gid = (gid_t)-1};
        strcpy(target, path);
        return MAMBA_OK;
    }
    const bool exists = stat(path, kept) == 0;
    if (exists && (!S_ISREG(kept->st_mode) || is_standard_stream(kept)))
        return mamba_fail(error, MAMBA_ERR_IO, path,
                          "expected a regular file other than stdout and stderr");
    if (!exists || !realpath(path, target) || access(target, W_OK) != 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot write: %s", strerror(errno));
    return MAMBA_OK;
}

static bool write_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        const ssize_t written = write(fd, data, bytes);
        if (written < 0 && errno != EINTR)
            return false;
        if (written > 0) {
            data += written;
            bytes -= (size_t)written;
        }
    }
    return true;
}

/* Makes a rename in the folder of `path` survive a power cut, where the system can. */
static void sync_folder(char *path)
{
    const int fd = open(dirname(path), O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

mamba_status write_file(const char *path, const void *data, size_t bytes, mamba_error *error)
{
    char target[PATH_MAX], temporary[PATH_MAX + sizeof ".tmp.XXXXXX"];
    struct stat kept;
    mamba_status status = find_target(target, &kept, path, error);
    if (status != MAMBA_OK)
        return status;
    snprintf(temporary, sizeof temporary, "%s.tmp.XXXXXX", target);
    const int fd = mkstemp(temporary);
    if (fd < 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot create: %s", strerror(errno));
    /* Only root can give a file away, and some file systems have no modes: not an error. */
    if (fchown(fd, kept.st_uid, kept.st_gid) == 0 || errno == EPERM)
        fchmod(fd, kept.st_mode & 0777);
    const bool good = write_all(fd, data, bytes) && fsync(fd) == 0;
    if (close(fd) == 0 && good && rename(temporary, target) == 0) {
        sync_folder(temporary);
        return MAMBA_OK;
    }
    mamba_fail(error, MAMBA_ERR_IO, path, "cannot write: %s", strerror(errno));
    unlink(temporary);
    return MAMBA_ERR_IO;
}
