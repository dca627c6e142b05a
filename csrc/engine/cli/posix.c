/* Calls of POSIX that the command alone needs. */
#define _DEFAULT_SOURCE /* POSIX 2008, realpath and getentropy */
#define _FILE_OFFSET_BITS 64

#include "commands.h"
#include "process.h"

#if !defined(_WIN32)
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

char **process_start(int *argc, char **argv)
{
    (void)argc;
    signal(SIGXFSZ, SIG_IGN); /* a write beyond the limit of `ulimit -f` fails, as on a full disk */
    return argv;
}

double now_seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Length of the part of `path` up to its last '/', with it; 0 if it has none. */
static int folder_length(const char *path)
{
    int n = (int)strlen(path);
    while (n > 0 && path[n - 1] != '/')
        n--;
    return n;
}

const char *file_name(const char *path)
{
    return path + folder_length(path);
}

enum { NO_GZIP = 127 }; /* exit code, as a shell's */

int gzip_start(const char *path, int *process)
{
    int ends[2];
    signal(SIGCHLD, SIG_DFL); /* the parent may have passed on that children are not waited for */
    if (pipe(ends) != 0 || (*process = fork()) < 0)
        return -1;
    if (*process == 0) {
        close(ends[0]);
        dup2(ends[1], STDOUT_FILENO);
        close(STDERR_FILENO); /* our own message is enough */
        close(STDIN_FILENO);
        open(path, O_RDONLY); /* becomes stdin */
        execlp("gzip", "gzip", "-dc", (char *)NULL);
        _exit(NO_GZIP);
    }
    close(ends[1]);
    return ends[0];
}

enum gzip_end gzip_wait(int process)
{
    int status = 0;
    if (waitpid(process, &status, 0) < 0 || WEXITSTATUS(status) == NO_GZIP)
        return GZIP_MISSING;
    return status ? GZIP_DAMAGED : GZIP_OK;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static bool leads_to(const char *path, const struct stat *file)
{
    struct stat found;
    return stat(path, &found) == 0 && same_file(&found, file);
}

/* Returns whether stdout or stderr goes to `file`, as after `--logits /dev/stdout > file`. */
static bool is_standard_stream(const struct stat *file)
{
    for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) {
        struct stat stream;
        if (fstat(fd, &stream) == 0 && same_file(&stream, file))
            return true;
    }
    return false;
}

/* Returns whether `path` can be written, or errno says why not; a link to nothing cannot. */
static bool is_writable(const char *path, bool exists)
{
    char target[1];
    if (!exists)
        return errno == ENOENT && readlink(path, target, sizeof target) < 0;
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && close(fd) == 0;
}

#if defined(__GLIBC__)
#if !__GLIBC_PREREQ(2, 25) /* which lacks it */
__attribute__((weak)) int getentropy(void *buffer, size_t size)
{
    const int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    const bool good = fd >= 0 && read(fd, buffer, size) == (ssize_t)size;
    if (fd >= 0)
        close(fd);
    return good ? 0 : -1;
}
#endif
#endif

/* Creates a file with a random name next to `target`. */
static int create(char *name, size_t size, const char *target, mode_t mode)
{
    unsigned long long random;
    if (getentropy(&random, sizeof random) != 0)
        return -1;
    snprintf(name, size, "%.*smamba.tmp.%llx", folder_length(target), target, random);
    return open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
}

/* Gives an empty file the access rights of *old. */
static bool copy_access(int fd, const struct stat *old)
{
    return fchown(fd, old->st_uid, old->st_gid) == 0 && fchmod(fd, old->st_mode & 0777) == 0;
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
    path[folder_length(path)] = '\0';
    const int fd = open(*path ? path : ".", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

mamba_status write_file(const char *path, const char *written, const void *data, size_t bytes,
                        mamba_error *error)
{
    char buffer[PATH_MAX], temporary[PATH_MAX + 32];
    struct stat old;
    const char *target; /* the file that `path` names, after all links */
    bool exists, other;
    int tries = 10;
    /* Links in /proc can lead to files without a name: then `target` is another file, or none. It
     * is also another one if a process replaces the file meanwhile, so try again. */
    do {
        exists = stat(path, &old) == 0;
        target = exists ? realpath(path, buffer) : path;
        other = exists && (!target || !leads_to(target, &old));
    } while (other && --tries);
    if (exists && (other || !S_ISREG(old.st_mode) || is_standard_stream(&old) ||
                   (written && leads_to(written, &old))))
        return mamba_fail(error, MAMBA_ERR_IO, path,
                          "expected a regular file other than stdout, stderr and --logits");
    const bool writable = is_writable(path, exists);
    const int fd =
        writable ? create(temporary, sizeof temporary, target, exists ? 0600 : 0666) : -1;
    const bool owned = fd < 0 || !exists || copy_access(fd, &old);
    const bool good = fd >= 0 && owned && write_all(fd, data, bytes) && fsync(fd) == 0;
    if (fd >= 0 && close(fd) == 0 && good && rename(temporary, target) == 0) {
        sync_folder(temporary);
        return MAMBA_OK;
    }
    mamba_fail(error, MAMBA_ERR_IO, path, "cannot %s: %s",
               owned ? "write" : "keep its owner and group", strerror(errno));
    if (fd >= 0)
        unlink(temporary);
    return MAMBA_ERR_IO;
}

#endif
