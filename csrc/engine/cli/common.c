#define _DEFAULT_SOURCE /* POSIX 2008, realpath and getentropy */
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
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

static mamba_status set_exit_margin(mamba_model *model, const char *text, mamba_error *error)
{
    char *end;
    const float margin = strtof(text, &end);
    if (end == text || *end || mamba_set_exit_margin(model, margin, NULL) != MAMBA_OK)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "--exit-margin: got '%.60s', expected a number from 0 to 1e6", text);
    return MAMBA_OK;
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
    if (status == MAMBA_OK && options->exit_margin)
        status = set_exit_margin(model, options->exit_margin, error);
    if (status == MAMBA_OK)
        status = command(&job, error);
    mamba_model_close(model);
    return status;
}

void print_json_text(const char *text)
{
    putchar('"');
    for (; *text; text++)
        printf(*text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
    putchar('"');
}

size_t argmax(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

void count_asked(struct asked *out, const uint8_t *asked, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out->images[asked[i] - 1]++;
        out->sum += asked[i];
    }
    out->n += n;
}

void print_asked(const struct asked *asked, const mamba_model *model, bool json)
{
    const uint32_t members = mamba_model_info(model)->members;
    printf(json ? ",\"members_asked_mean\":%.9g,\"members_asked\":["
                : "members asked: mean %.4f; images that asked 1, 2, ... members: ",
           (double)asked->sum / (double)asked->n);
    for (uint32_t i = 0; i < members; i++)
        printf("%s%zu", i ? (json ? "," : ", ") : "", asked->images[i]);
    printf(json ? "]" : "\n");
}

int choose_threads(int wanted, int otherwise)
{
    if (wanted > 1 && mamba_max_threads() == 1) {
        fprintf(stderr,
                "mamba: warning: one thread runs, not %d: OMP_NUM_THREADS, or a build without "
                "`make omp`\n",
                wanted);
        return 1;
    }
    return wanted ? wanted : otherwise;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
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

/* Length of the part of `path` up to its last '/', with it; 0 if it has none. */
static int folder_length(const char *path)
{
    int n = (int)strlen(path);
    while (n > 0 && path[n - 1] != '/')
        n--;
    return n;
}

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

mamba_status write_file(const char *path, const void *data, size_t bytes, mamba_error *error)
{
    char buffer[PATH_MAX], temporary[PATH_MAX + 32];
    struct stat old, found;
    const bool exists = stat(path, &old) == 0;
    /* The file that `path` names, after all links. Links in /proc can lead to files without a name:
     * then it is another one, or none. */
    const char *target = exists ? realpath(path, buffer) : path;
    if (exists && (!S_ISREG(old.st_mode) || is_standard_stream(&old) || !target ||
                   stat(target, &found) != 0 || !same_file(&found, &old)))
        return mamba_fail(error, MAMBA_ERR_IO, path,
                          "expected a regular file other than stdout and stderr");
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
