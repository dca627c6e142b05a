/* `mamba bench`: time per image, in rounds of calls on synthetic images after a warm-up. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "error.h"
#include "idx.h"

enum { DISTINCT = 64 };   /* painted batches */
enum { MAX_STEP = 4096 }; /* pixels: large images share most of their memory */
enum { MIN_CALLS = 5, MAX_CALLS = 10000 };
enum { MAX_TIMES = 1 << 24 }; /* of calls in all rounds: 128 MiB */
static const double ROUND_SECONDS = 0.2;

struct bench {
    const mamba_model *model;
    int batch, threads, rounds;
    size_t calls;          /* per round */
    size_t batches;        /* that calls cycle through */
    size_t step;           /* pixels from one batch to the next */
    const uint8_t *images; /* [(batches - 1) * step + pixels of a batch] */
    uint8_t *own_images;   /* the same memory, or NULL if those of a file are used in place */
    struct idx idx;
    void *arena;
    size_t arena_bytes;
    float *logits;       /* [batch, n_classes] */
    uint8_t *members;    /* [batch] asked */
    struct asked asked;  /* in the calls that count */
    double *call_times;  /* [rounds * calls] seconds per image */
    double *round_times; /* [rounds] */
};

/* Fills pixels like those of digits, a fifth of them lit, the same on every machine: xorshift
 * (Marsaglia 2003). */
static void paint(uint8_t *images, size_t n)
{
    uint32_t x = 2463534242u;
    for (size_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        images[i] = x >> 24 < 51 ? (uint8_t)(x & 0xFFu) : 0;
    }
}

static mamba_status classify(const struct bench *bench, size_t call, mamba_error *error)
{
    return mamba_forward_batch_u8(bench->model, bench->arena, bench->arena_bytes, bench->threads,
                                  bench->images + call % bench->batches * bench->step,
                                  (size_t)bench->batch, bench->logits, bench->members, error);
}

/* Returns the seconds per image of call number `call`. */
static double time_call(const struct bench *bench, size_t call)
{
    const double start = now_seconds();
    classify(bench, call, NULL);
    return (now_seconds() - start) / bench->batch;
}

static mamba_status no_memory(const struct bench *bench, mamba_error *error)
{
    return mamba_fail(error, MAMBA_ERR_MEMORY, NULL,
                      "no memory for a batch of %d images and %d threads", bench->batch,
                      bench->threads);
}

static mamba_status paint_images(struct bench *bench, size_t pixels, mamba_error *error)
{
    bench->batches = DISTINCT;
    bench->step = pixels < MAX_STEP ? pixels : MAX_STEP;
    const size_t painted = (DISTINCT - 1) * bench->step + (size_t)bench->batch * pixels;
    bench->images = bench->own_images = malloc(painted);
    if (!bench->own_images)
        return no_memory(bench, error);
    paint(bench->own_images, painted);
    return MAMBA_OK;
}

/* Fills a batch that is larger than the file by repeating its images. */
static mamba_status repeat_images(struct bench *bench, mamba_error *error)
{
    const size_t bytes = bench->step, file = bench->idx.n * (bench->step / (size_t)bench->batch);
    bench->batches = 1;
    bench->images = bench->own_images = malloc(bytes);
    if (!bench->own_images)
        return no_memory(bench, error);
    for (size_t at = 0; at < bytes; at += file)
        memcpy(bench->own_images + at, bench->idx.data, bytes - at < file ? bytes - at : file);
    return MAMBA_OK;
}

static mamba_status open_images(struct bench *bench, size_t pixels, const struct options *options,
                                mamba_error *error)
{
    mamba_status status =
        mamba_idx_open(&bench->idx, options->positional[1], IDX_IMAGES, options->access, error);
    if (status == MAMBA_OK)
        status = mamba_idx_check_size(&bench->idx, mamba_model_info(bench->model), error);
    if (status != MAMBA_OK)
        return status;
    bench->images = bench->idx.data;
    bench->step = (size_t)bench->batch * pixels;
    bench->batches = bench->idx.n / (size_t)bench->batch;
    return bench->batches > 0 ? MAMBA_OK : repeat_images(bench, error);
}

/* Chooses how many calls make a round: each batch of a file once, or as many as ROUND_SECONDS have
 * room for. The first call finds cold caches and starts the threads. */
static mamba_status choose_calls(struct bench *bench, mamba_error *error)
{
    const mamba_status status = classify(bench, 0, error);
    if (status != MAMBA_OK)
        return status;
    const double calls = ROUND_SECONDS / (time_call(bench, 1) * bench->batch + 1e-9);
    bench->calls = calls > (double)MAX_CALLS ? MAX_CALLS : (size_t)calls;
    bench->calls = bench->calls < MIN_CALLS ? MIN_CALLS : bench->calls;
    if (bench->idx.n > 0)
        bench->calls = bench->batches;
    return MAMBA_OK;
}

static mamba_status prepare(struct bench *bench, const struct options *options, mamba_error *error)
{
    const mamba_info *info = mamba_model_info(bench->model);
    const size_t pixels = (size_t)info->height * info->width * info->channels;
    if (sizeof(size_t) < 8 && (uint64_t)bench->batch * pixels > SIZE_MAX / 2)
        return no_memory(bench, error);
    mamba_status status = options->positional[1] ? open_images(bench, pixels, options, error)
                                                 : paint_images(bench, pixels, error);
    if (status != MAMBA_OK)
        return status;
    bench->arena_bytes = mamba_batch_bytes(bench->model, bench->threads);
    bench->arena = bench->arena_bytes ? malloc(bench->arena_bytes) : NULL;
    bench->logits = calloc((size_t)bench->batch, info->n_classes * sizeof(float));
    bench->members = malloc((size_t)bench->batch);
    if (!bench->arena || !bench->logits || !bench->members)
        return no_memory(bench, error);
    if ((status = choose_calls(bench, error)) != MAMBA_OK)
        return status;
    const uint64_t times = (uint64_t)bench->rounds * bench->calls;
    if (times <= MAX_TIMES)
        bench->call_times = calloc((size_t)times, sizeof(double));
    bench->round_times = calloc((size_t)bench->rounds, sizeof(double));
    if (!bench->call_times || !bench->round_times)
        return mamba_fail(error, MAMBA_ERR_MEMORY, NULL, "no memory, or more than 2^24 calls");
    return MAMBA_OK;
}

static void measure(struct bench *bench)
{
    for (size_t call = 0; call < bench->calls; call++) /* warm up for one round */
        time_call(bench, call);
    for (size_t round = 0; round < (size_t)bench->rounds; round++) {
        double sum = 0.0;
        for (size_t call = 0; call < bench->calls; call++) {
            double seconds = time_call(bench, call);
            count_asked(&bench->asked, bench->members, (size_t)bench->batch);
            bench->call_times[round * bench->calls + call] = seconds;
            sum += seconds;
        }
        bench->round_times[round] = sum / (double)bench->calls;
    }
}

static int ascending(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Returns a quantile of n sorted times, in microseconds. */
static double quantile_us(const double *sorted, size_t n, double fraction)
{
    size_t index = (size_t)(fraction * (double)(n - 1) + 0.5);
    return 1e6 * sorted[index];
}

static void report(struct bench *bench, const struct job *job)
{
    const size_t rounds = (size_t)bench->rounds, calls = rounds * bench->calls;
    qsort(bench->round_times, rounds, sizeof(double), ascending);
    qsort(bench->call_times, calls, sizeof(double), ascending);
    const char *format =
        job->options->json
            ? "{\"batch\":%d,\"threads\":%d,\"rounds\":%d,\"calls\":%zu,\"median_us\":%.3f,"
              "\"p50_us\":%.3f,\"p99_us\":%.3f,\"min_us\":%.3f,\"load_us\":%.1f,\"isa\":\"%s\""
            : "batch %d, %d thread(s), %d rounds, %zu calls; microseconds per image:\n"
              "median of rounds %10.3f\n"
              "p50 of calls     %10.3f\n"
              "p99 of calls     %10.3f\n"
              "min of calls     %10.3f\n"
              "loading          %10.1f (once: open, checksum, checks)\n"
              "instruction set  %10s\n";
    printf(format, bench->batch, bench->threads, bench->rounds, calls,
           quantile_us(bench->round_times, rounds, 0.5), quantile_us(bench->call_times, calls, 0.5),
           quantile_us(bench->call_times, calls, 0.99), quantile_us(bench->call_times, calls, 0.0),
           1e6 * job->load_seconds, mamba_model_isa(bench->model));
    if (job->options->json || mamba_model_info(bench->model)->members > 1)
        print_asked(&bench->asked, bench->model, job->options->json);
    if (job->options->json)
        printf("}\n");
}

mamba_status command_bench(const struct job *job, mamba_error *error)
{
    struct bench bench = {
        .model = job->model,
        .batch = job->options->batch,
        .threads = choose_threads(job->options->threads, 1),
        .rounds = job->options->rounds,
    };
    if (!job->options->positional[1] && !job->options->exit_margin)
        mamba_set_exit_margin(job->model, 0.0f, NULL); /* the worst case */
    mamba_status status = prepare(&bench, job->options, error);
    if (status == MAMBA_OK) {
        measure(&bench);
        report(&bench, job);
    }
    free(bench.round_times);
    free(bench.call_times);
    free(bench.members);
    free(bench.logits);
    free(bench.arena);
    free(bench.own_images);
    mamba_input_close(&bench.idx.input);
    return status;
}
