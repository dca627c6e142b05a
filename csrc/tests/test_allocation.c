/* Nothing is allocated while an image runs: with this program's own malloc, which ends it then. */
#include <stdlib.h>

#include "check.h"
#include "mamba.h"

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)

/* glibc's own names of what is replaced here. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static volatile bool forbidden, seen;

static void note(void)
{
    seen = true;
    if (forbidden)
        abort();
}

void *malloc(size_t size)
{
    note();
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    note();
    return __libc_calloc(n, size);
}

void *realloc(void *memory, size_t size)
{
    note();
    return __libc_realloc(memory, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    note();
    return __libc_memalign(alignment, size);
}

static void test_model(const char *path)
{
    mamba_model *model;
    mamba_context *context;
    mamba_error error;
    if (!CHECK(mamba_model_open(&model, path, &error) == MAMBA_OK, "%s", error.message))
        return;
    const mamba_info *info = mamba_model_info(model);
    const size_t pixels = (size_t)info->height * info->width, bytes = mamba_context_bytes(model);
    float *image = calloc(pixels, sizeof *image), logits[256];
    uint8_t *image_u8 = calloc(pixels, 1);
    void *arena = malloc(bytes);
    seen = false;
    forbidden = true;
    mamba_status status = mamba_context_init(&context, model, arena, bytes, &error);
    if (status == MAMBA_OK)
        status = mamba_forward(context, image, logits);
    if (status == MAMBA_OK)
        status = mamba_forward_u8(context, image_u8, logits);
#if !defined(_OPENMP) /* its run-time library allocates the team of threads */
    if (status == MAMBA_OK)
        status = mamba_forward_batch(model, arena, bytes, 1, image, 1, logits, &error);
#endif
    forbidden = false;
    CHECK(status == MAMBA_OK, "%s: status %d", path, (int)status);
    CHECK(!seen, "%s: something was allocated", path);
    free(arena);
    free(image_u8);
    free(image);
    mamba_model_close(model);
}

int main(void)
{
    void *volatile memory = malloc(1);
    CHECK(seen, "malloc is not this program's own: nothing below would be noticed");
    free(memory);
    test_model("csrc/tests/golden/conv_alternate.bin");
    test_model("csrc/tests/golden/patch_bidirectional_tied.bin");
    test_model("csrc/tests/golden/wide_panels.bin");
    return check_summary();
}

#else

int main(void)
{
    CHECK(true, "needs glibc's malloc");
    printf("not tested here: needs glibc without sanitizers\n");
    return check_summary();
}

#endif
