/* JavaScript calls the functions of mamba.h. This file adds functions in place of those that read
 * files, and the callback that passes a trace to JavaScript. */
#include "file_bytes.h"

/* JavaScript passes the bytes of a model, so no file is opened, read or closed. */
mamba_status mamba_file_rest(struct file_bytes *file, uint64_t expected, const char *path,
                             mamba_error *error)
{
    (void)file, (void)expected, (void)path, (void)error;
    return MAMBA_OK;
}

void mamba_file_close(struct file_bytes *file)
{
    *file = (struct file_bytes){0};
}

__attribute__((import_module("env"), import_name("trace"))) extern void
trace(void *user, const char *name, int layer, const float *data, size_t rows, size_t cols,
      size_t row_stride);

/* Shows each stage of the context's forward passes to JavaScript, or no longer. */
void set_trace(mamba_context *context, int on)
{
    mamba_set_trace(context, on ? trace : NULL, NULL);
}
