/* Two contexts on two threads share one model: the bits are those of one thread, and there is no
 * race (build/tsan runs this under ThreadSanitizer, with POSIX threads, because libgomp has races
 * of its own there). */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "tiny_model.h"

enum { THREADS = 2, IMAGES = 50, PIXELS = 4 * 6, CLASSES = 3 };

struct work {
    const mamba_model *model;
    float logits[IMAGES][CLASSES];
    mamba_status status;
};

static void *run(void *argument)
{
    struct work *work = argument;
    const size_t bytes = mamba_context_bytes(work->model);
    void *arena = malloc(bytes);
    mamba_context *context;
    work->status = mamba_context_init(&context, work->model, arena, bytes, NULL);
    for (int image = 0; image < IMAGES && work->status == MAMBA_OK; image++) {
        uint8_t pixels[PIXELS];
        for (int i = 0; i < PIXELS; i++)
            pixels[i] = (uint8_t)(i * image);
        work->status = mamba_forward_u8(context, pixels, work->logits[image]);
    }
    free(arena);
    return NULL;
}

int main(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 31);
    mamba_model *model;
    CHECK(mamba_model_from_bytes(&model, tiny.bytes, tiny.size, NULL) == MAMBA_OK, "does not open");
    struct work alone = {.model = model}, shared[THREADS];
    pthread_t threads[THREADS];
    run(&alone);
    for (int i = 0; i < THREADS; i++) {
        shared[i] = (struct work){.model = model};
        if (pthread_create(&threads[i], NULL, run, &shared[i]) != 0)
            abort();
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(shared[i].status == MAMBA_OK, "status %d", shared[i].status);
        CHECK(memcmp(shared[i].logits, alone.logits, sizeof alone.logits) == 0, "thread %d", i);
    }
    mamba_model_close(model);
    tiny_free(&tiny);
    return check_summary();
}
