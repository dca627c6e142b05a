/* Two contexts on two threads share one model: the bits are those of one thread, and there is no
 * race (build/tsan runs this under ThreadSanitizer, with POSIX threads, because libgomp has races
 * of its own there). A batch on two threads also works in a forked process. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "tiny_model.h"

enum { THREADS = 2, IMAGES = 50, PIXELS = 4 * 6, CLASSES = 3, PATIENCE_S = 120 };

static void set_image(uint8_t pixels[PIXELS], int image)
{
    for (int i = 0; i < PIXELS; i++)
        pixels[i] = (uint8_t)(i * image);
}

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
        set_image(pixels, image);
        work->status = mamba_forward_u8(context, pixels, work->logits[image]);
    }
    free(arena);
    return NULL;
}

/* Are the logits of a batch on THREADS threads the expected ones? */
static bool batch_is_right(const struct work *expected)
{
    static uint8_t images[IMAGES][PIXELS];
    static float logits[IMAGES][CLASSES];
    for (int image = 0; image < IMAGES; image++)
        set_image(images[image], image);
    memset(logits, 0, sizeof logits);
    const size_t bytes = mamba_batch_bytes(expected->model, THREADS);
    void *arena = malloc(bytes);
    const mamba_status status = mamba_forward_batch_u8(expected->model, arena, bytes, THREADS,
                                                       *images, IMAGES, *logits, NULL, NULL);
    free(arena);
    return status == MAMBA_OK && memcmp(logits, expected->logits, sizeof logits) == 0;
}

/* Forks `generations` times, each child from its parent. Returns whether the batch is right in each
 * of them and no process hangs. */
static bool descendants_are_right(const struct work *expected, int generations)
{
    const pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE_S);
        const bool right = mamba_max_threads() == 1 && batch_is_right(expected);
        const bool rest = generations == 1 || descendants_are_right(expected, generations - 1);
        _exit(right && rest ? 0 : 1);
    }
    int status = -1;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

int main(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 31);
    mamba_model *model;
    CHECK(mamba_model_from_bytes(&model, tiny.bytes, tiny.size, NULL) == MAMBA_OK, "does not open");
    struct work alone = {.model = model}, shared[THREADS];
    pthread_t threads[THREADS];
    run(&alone);
    CHECK(descendants_are_right(&alone, 1), "before the first batch");
    const int max_threads = mamba_max_threads();
    CHECK(batch_is_right(&alone), "%d threads", THREADS);
    CHECK(descendants_are_right(&alone, 2), "after a batch on %d threads", THREADS);
    CHECK(batch_is_right(&alone), "after a fork");
    CHECK(mamba_max_threads() == max_threads, "a fork changed the parent");
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
