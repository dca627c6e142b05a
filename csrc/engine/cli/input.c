#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "input.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "process.h"
#include "system.h"

/* Waits for gzip, and returns an error if it failed. */
static mamba_status end_gzip(struct input *input, mamba_error *error)
{
    const enum gzip_end end = gzip_wait(input->gzip);
    input->gzip = 0;
    if (end == GZIP_MISSING)
        return mamba_fail(error, MAMBA_ERR_IO, input->path,
                          "cannot run gzip: install it, or unpack the file");
    return end == GZIP_OK
               ? MAMBA_OK
               : mamba_fail(error, MAMBA_ERR_INPUT, input->path,
                            "damaged gzip: truncated, changed, or followed by other bytes");
}

/* Starts to unpack the gzip file input->path. */
static mamba_status open_gzip(struct input *input, mamba_error *error)
{
    const int fd = gzip_start(input->path, &input->gzip);
    if (fd < 0)
        return mamba_fail(error, errno == ENOSYS ? MAMBA_ERR_IO : MAMBA_ERR_MEMORY, input->path,
                          "cannot start gzip: %s: unpack the file", strerror(errno));
    mamba_status status = mamba_stream_open(&input->file, fd, input->path, error);
    return status == MAMBA_OK && input->file.size != UNKNOWN_SIZE ? end_gzip(input, error) : status;
}

/* Sets input->path to `path`, or to path.gz if only that exists. */
static void set_path(struct input *input, const char *path)
{
    snprintf(input->path, sizeof input->path, "%s.gz", path);
    if (system_exists(path) || !system_exists(input->path))
        snprintf(input->path, sizeof input->path, "%s", path);
}

static bool is_gzip(const struct file_bytes *file)
{
    return file->size >= 2 && file->data[0] == 0x1F && file->data[1] == 0x8B;
}

enum { STDIN = 0 }; /* the descriptor */

mamba_status mamba_input_open(struct input *out, const char *path, enum file_access access,
                              mamba_error *error)
{
    *out = (struct input){.path = "stdin", .stream = true};
    if (strcmp(path, "-") == 0) {
        struct file_status found;
        if (system_status(STDIN, &found) && found.is_device)
            return mamba_fail(error, MAMBA_ERR_IO, out->path,
                              "got a terminal or device, expected a file or pipe: add `< FILE`");
        return mamba_stream_open(&out->file, STDIN, out->path, error);
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
