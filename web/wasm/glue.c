/* The functions that WebAssembly has instead of those with files, and the way of a trace to
 * JavaScript, which otherwise calls the functions of mamba.h. */
#include "file_bytes.h"

/* The bytes of a model are JavaScript's: there is no file to open or to close. */
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
