#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "input.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"

enum { NO_GZIP = 127 }; /* exit code, as a shell's */

/* Waits for gzip, and returns an error if it failed. */
static mamba_status end_gzip(struct input *input, mamba_error *error)
{
    int status = 0;
    const pid_t ended = waitpid(input->gzip, &status, 0);
    input->gzip = 0;
    if (ended < 0 || WEXITSTATUS(status) == NO_GZIP)
        return mamba_fail(error, MAMBA_ERR_IO, input->path,
                          "cannot run gzip: install it, or unpack the file");
    return !status ? MAMBA_OK
                   : mamba_fail(error, MAMBA_ERR_INPUT, input->path,
                                "damaged gzip: truncated, changed, or followed by other bytes");
}

/* Starts to unpack the gzip file input->path. */
static mamba_status open_gzip(struct input *input, mamba_error *error)
{
    int ends[2];
    signal(SIGCHLD, SIG_DFL); /* the parent may have passed on that children are not waited for */
    if (pipe(ends) != 0 || (input->gzip = fork()) < 0)
        return mamba_fail(error, MAMBA_ERR_MEMORY, input->path, "cannot start gzip: %s",
                          strerror(errno));
    if (input->gzip == 0) {
        close(ends[0]);
        dup2(ends[1], STDOUT_FILENO);
        close(STDERR_FILENO); /* our own message is enough */
        close(STDIN_FILENO);
        open(input->path, O_RDONLY); /* becomes stdin */
        execlp("gzip", "gzip", "-dc", (char *)NULL);
        _exit(NO_GZIP);
    }
    close(ends[1]);
    mamba_status status = mamba_stream_open(&input->file, ends[0], input->path, error);
    return status == MAMBA_OK && input->file.size != UNKNOWN_SIZE ? end_gzip(input, error) : status;
}

/* Sets input->path to `path`, or to path.gz if only that exists. */
static void set_path(struct input *input, const char *path)
{
    struct stat found;
    snprintf(input->path, sizeof input->path, "%s.gz", path);
    if (stat(path, &found) == 0 || stat(input->path, &found) != 0)
        snprintf(input->path, sizeof input->path, "%s", path);
}

static bool is_gzip(const struct file_bytes *file)
{
    return file->size >= 2 && file->data[0] == 0x1F && file->data[1] == 0x8B;
}

mamba_status mamba_input_open(struct input *out, const char *path, enum file_access access,
                              mamba_error *error)
{
    *out = (struct input){.path = "stdin", .stream = true};
    if (strcmp(path, "-") == 0) {
        struct stat found;
        if (fstat(STDIN_FILENO, &found) == 0 && S_ISCHR(found.st_mode))
            return mamba_fail(error, MAMBA_ERR_IO, out->path,
                              "got a terminal or device, expected a file or pipe: add `< FILE`");
        return mamba_stream_open(&out->file, STDIN_FILENO, out->path, error);
    }
    set_path(out, path);
    mamba_status status = mamba_file_open(&out->file, out->path, access, error);
    out->stream = status == MAMBA_OK && is_gzip(&out->file);
    if (!out->stream)
        return status;
    mamba_file_close(&out->file);
    return open_gzip(out, error);
}

mamba_status mamba_input_rest(struct input *input, uint64_t expected, const char *which,
                              mamba_error *error)
{
    const struct file_bytes *file = &input->file;
    if (input->gzip && expected > MAX_UNPACKED)
        return mamba_fail(error, MAMBA_ERR_INPUT, input->path,
                          "file size: got %llu bytes in gzip, expected up to %d: gunzip it",
                          (unsigned long long)expected, MAX_UNPACKED);
    mamba_status status = mamba_file_rest(&input->file, expected, input->path, error);
    if (status == MAMBA_OK && input->gzip && file->size <= expected)
        status = end_gzip(input, error);
    if (status == MAMBA_OK && file->size != expected)
        status = mamba_fail(error, MAMBA_ERR_INPUT, input->path,
                            "file size: got %s%zu bytes, expected %llu (%s)",
                            input->stream && file->size > expected ? "at least " : "", file->size,
                            (unsigned long long)expected, which);
    return status;
}

void mamba_input_close(struct input *input)
{
    mamba_file_close(&input->file);
    if (input->gzip)
        end_gzip(input, NULL);
}
