/* Many images. Threads share out the images and never work on the same one, so the bits of a logit
 * depend on its image alone. */
#include <stdbool.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "error.h"
#include "fork.h"
#include "model.h"
#include "threads.h"

/* One of the two pointers is NULL. */
struct images {
    const float *f32;  /* [n, pixels] */
    const uint8_t *u8; /* [n, pixels] */
    size_t n;
};

int mamba_max_threads(void)
{
#ifdef _OPENMP
    const int threads = forked ? 1 : omp_get_max_threads();
    return threads > MAX_THREADS ? MAX_THREADS : threads;
#else
    return 1;
#endif
}

size_t mamba_batch_bytes(const mamba_model *model, int threads)
{
    size_t slice = mamba_context_bytes(model); /* with room for its own alignment */
    if (threads < 1 || threads > MAX_THREADS || slice > SIZE_MAX / (size_t)threads)
        return 0;
    return slice * (size_t)threads;
}

static mamba_status check_batch(const mamba_model *model, const void *arena, size_t arena_bytes,
                                int threads, const struct images *images, const float *logits,
                                mamba_error *error)
{
    const char *missing = NULL;
    if (!model)
        missing = "model";
    else if (!arena)
        missing = "arena";
    else if (images->n > 0 && !images->f32 && !images->u8)
        missing = "images";
    else if (images->n > 0 && !logits)
        missing = "logits";
    if (missing)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "mamba_forward_batch: %s is NULL",
                          missing);
    if (threads < 1 || threads > MAX_THREADS)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "threads: got %d, expected 1..%d",
                          threads, MAX_THREADS);
    size_t needed = mamba_batch_bytes(model, threads);
    if (needed == 0)
        return mamba_fail(error, MAMBA_ERR_MEMORY, NULL,
                          "%d threads need more memory than can be addressed", threads);
    if (arena_bytes < needed)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "arena_bytes: got %zu, expected at least the %zu of mamba_batch_bytes",
                          arena_bytes, needed);
    return MAMBA_OK;
}

static mamba_status run_batch(const mamba_model *model, void *arena, size_t arena_bytes,
                              int threads, struct images images, float *logits, uint8_t *asked,
                              mamba_error *error)
{
    mamba_status status = check_batch(model, arena, arena_bytes, threads, &images, logits, error);
    if (status != MAMBA_OK)
        return status;
    const size_t slice = mamba_context_bytes(model), n_classes = model->info.n_classes;
    const size_t pixels = mamba_image_values(&model->info);
    size_t bad = SIZE_MAX; /* first image whose logits are not finite */
#ifdef _OPENMP
#pragma omp parallel num_threads(forked ? 1 : threads) reduction(min : bad)
#endif
    {
        size_t thread = 0;
#ifdef _OPENMP
        thread = (size_t)omp_get_thread_num();
#endif
        mamba_context *context;
        mamba_context_init(&context, model, (char *)arena + thread * slice, slice, NULL);
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 4)
#endif
        for (size_t i = 0; i < images.n; i++) {
            float *out = logits + i * n_classes;
            const mamba_status one = images.f32
                                         ? mamba_forward(context, images.f32 + i * pixels, out)
                                         : mamba_forward_u8(context, images.u8 + i * pixels, out);
            if (asked)
                asked[i] = (uint8_t)mamba_members_asked(context);
            if (one != MAMBA_OK && i < bad)
                bad = i;
        }
    }
    if (bad != SIZE_MAX)
        return mamba_fail(error, MAMBA_ERR_MODEL, NULL,
                          "logits of image %zu: got a NaN or infinity, expected numbers", bad);
    return MAMBA_OK;
}

mamba_status mamba_forward_batch(const mamba_model *model, void *arena, size_t arena_bytes,
                                 int threads, const float *images, size_t n, float *logits,
                                 uint8_t *asked, mamba_error *error)
{
    struct images all = {.f32 = images, .n = n};
    return run_batch(model, arena, arena_bytes, threads, all, logits, asked, error);
}

mamba_status mamba_forward_batch_u8(const mamba_model *model, void *arena, size_t arena_bytes,
                                    int threads, const uint8_t *images, size_t n, float *logits,
                                    uint8_t *asked, mamba_error *error)
{
    struct images all = {.u8 = images, .n = n};
    return run_batch(model, arena, arena_bytes, threads, all, logits, asked, error);
}
