/* `mamba bench` against a clock that runs as this test says: units, percentiles, what is counted.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "cli/commands.h"
#include "tiny_model.h"

enum { BATCH = 2, ROUNDS = 3 };

static long trial_us; /* time of the call that decides how many make a round */
static long calls;    /* that must follow from it */
static size_t clock_reads;
static struct timespec now;

/* Each interval has two reads: loading, the trial call, a round for the warm-up, the rounds. The
 * times of the calls that count are the squares of a permutation of 1..n, so that their median,
 * mean and the rounds' median differ. */
static long interval_us(size_t interval)
{
    if (interval == 0)
        return 1500;
    if (interval == 1)
        return trial_us;
    const long n = ROUNDS * calls, call = (long)interval - 2 - calls;
    if (call < 0)
        return 7000000;
    const long number = 7 * call % n + 1;
    return BATCH * number * number;
}

/* Replaces libc's. */
int clock_gettime(clockid_t clock, struct timespec *time)
{
    (void)clock;
    if (clock_reads % 2 == 1) {
        const long us = interval_us(clock_reads / 2);
        now.tv_sec += us / 1000000;
        now.tv_nsec += us % 1000000 * 1000;
        now.tv_sec += now.tv_nsec / 1000000000;
        now.tv_nsec %= 1000000000;
    }
    clock_reads++;
    *time = now;
    return 0;
}

/* Runs `mamba bench` and stores what it prints, or its error. */
static mamba_status run_bench(const struct options *options, char *printed, size_t size)
{
    mamba_error error = {MAMBA_OK, ""};
    FILE *file = tmpfile();
    fflush(stdout);
    const int kept = dup(STDOUT_FILENO);
    if (!file || kept < 0 || dup2(fileno(file), STDOUT_FILENO) < 0)
        abort();
    clock_reads = 0;
    const mamba_status status = run_command(command_bench, options, &error);
    fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    close(kept);
    rewind(file);
    const size_t n = fread(printed, 1, size - 1, file);
    snprintf(printed + n, size - n, "%s", error.message);
    fclose(file);
    return status;
}

/* Runs it on a model and images, or NULL. */
static mamba_status bench(const char *path, const char *images, bool json, char *printed,
                          size_t size)
{
    const struct options options = {
        .positional = {path, images}, .json = json, .batch = BATCH, .rounds = ROUNDS, .threads = 1};
    return run_bench(&options, printed, size);
}

/* Expects `start`, the instruction set and `end`. */
static void expect(const char *path, const char *images, bool json, const char *start,
                   const char *end)
{
    char expected[1000], printed[1000];
    mamba_model *model;
    if (!CHECK(mamba_model_open(&model, path, NULL) == MAMBA_OK, "does not open"))
        return;
    snprintf(expected, sizeof expected, json ? "%s%s\"%s}\n" : "%s%10s\n%s", start,
             mamba_model_isa(model), end);
    mamba_model_close(model);
    CHECK(bench(path, images, json, printed, sizeof printed) == MAMBA_OK, "does not run");
    CHECK(strcmp(printed, expected) == 0, "got\n%sexpected\n%s", printed, expected);
    CHECK(clock_reads == (size_t)(2 * (2 + (1 + ROUNDS) * calls)), "%zu reads of the clock",
          clock_reads);
}

/* Images of a file are timed with the exit margin of the model, each batch once in a round; images
 * that do not fill a batch are left out. Without images, all members are. */
static void test_images(const char *path)
{
    static const uint8_t images[16 + 5 * 4 * 6] = {0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 6};
    char idx[200], printed[1000];
    mamba_info dims = tiny_dims();
    dims.members = 3;
    dims.exit_margin = 1e-30f; /* one member is enough */
    struct tiny_model tiny = tiny_build(dims, 1);
    tiny_write(path, tiny.bytes, tiny.size);
    snprintf(idx, sizeof idx, "%s.idx", path);
    tiny_write(idx, images, sizeof images);
    trial_us = 6557;
    calls = 2;
    expect(path, idx, true,
           "{\"batch\":2,\"threads\":1,\"rounds\":3,\"calls\":6,\"median_us\":12.500,"
           "\"p50_us\":16.000,\"p99_us\":36.000,\"min_us\":1.000,\"load_us\":1500.0,\"isa\":\"",
           ",\"members_asked_mean\":1,\"members_asked\":[12,0,0]");
    calls = 30;
    bench(path, NULL, false, printed, sizeof printed);
    CHECK(strstr(printed, "members asked: mean 3.0000; images that asked 1, 2, ... members: 0, 0, "
                          "180\n"),
          "%s", printed);
    tiny_write(idx, images, 16);
    CHECK(bench(path, idx, true, printed, sizeof printed) == MAMBA_ERR_INPUT, "no images");
    unlink(idx);
    tiny_free(&tiny);
}

/* Expects an error for a file of `n` black images. */
static void refuses(const char *path, mamba_info dims, uint32_t n, int batch, int rounds,
                    mamba_status expected, const char *says)
{
    char idx[200], printed[1000];
    const uint32_t header[] = {0x803, n, dims.height, dims.width};
    const size_t bytes = sizeof header + (size_t)n * dims.height * dims.width;
    uint8_t *images = calloc(1, bytes);
    if (!images)
        abort();
    for (size_t i = 0; i < sizeof header; i++)
        images[i] = (uint8_t)(header[i / 4] >> (24 - 8 * (i % 4)));
    struct tiny_model tiny = tiny_build(dims, 1);
    tiny_write(path, tiny.bytes, tiny.size);
    snprintf(idx, sizeof idx, "%s.idx", path);
    tiny_write(idx, images, bytes);
    const struct options options = {
        .positional = {path, idx}, .batch = batch, .rounds = rounds, .threads = 1};
    const mamba_status status = run_bench(&options, printed, sizeof printed);
    CHECK(status == expected && strstr(printed, says), "status %d: %s", (int)status, printed);
    unlink(idx);
    tiny_free(&tiny);
    free(images);
}

/* The memory that options demand has a ceiling, and is counted in more than 32 bits. */
static void test_limits(const char *path)
{
    mamba_info dims = tiny_dims();
    trial_us = 1;
    refuses(path, dims, (1 << 24) / 1000 + 1, 1, 1000, MAMBA_ERR_MEMORY,
            "no memory, or more than 2^24 calls");
    if (SIZE_MAX > UINT32_MAX) {
        printf("skipped: a batch larger than the address space needs one of 32 bits\n");
        return;
    }
    dims.height = dims.width = 256;
    dims.patch_height = dims.patch_width = 128;
    refuses(path, dims, 1, 65536, 1, MAMBA_ERR_MEMORY, "no memory for a batch of 65536 images");
}

int main(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 1);
    char printed[1000];
    const char *path = tiny_path();
    tiny_write(path, tiny.bytes, tiny.size);
    trial_us = 6557; /* 30.5 of them are 0.2 s */
    calls = 30;
    expect(path, NULL, true,
           "{\"batch\":2,\"threads\":1,\"rounds\":3,\"calls\":90,\"median_us\":2657.167,"
           "\"p50_us\":2116.000,\"p99_us\":7921.000,\"min_us\":1.000,\"load_us\":1500.0,\"isa\":\"",
           ",\"members_asked_mean\":1,\"members_asked\":[180]");
    expect(path, NULL, false,
           "batch 2, 1 thread(s), 3 rounds, 90 calls; microseconds per image:\n"
           "median of rounds   2657.167\n"
           "p50 of calls       2116.000\n"
           "p99 of calls       7921.000\n"
           "min of calls          1.000\n"
           "loading              1500.0 (once: open, checksum, checks)\n"
           "instruction set  ",
           "");
    trial_us = 3000000;
    calls = 5; /* at least */
    bench(path, NULL, true, printed, sizeof printed);
    CHECK(strstr(printed, "\"calls\":15,"), "%s", printed);

    for (size_t i = 0; i < 16 * 6; i++) /* the head, but for its padding */
        if (i % 16 < tiny_dims().n_classes)
            tiny_put_f32(&tiny, tiny.size - 4 * (16 * 6 - i), 3e38f);
    tiny_seal(&tiny);
    tiny_write(path, tiny.bytes, tiny.size);
    CHECK(bench(path, NULL, true, printed, sizeof printed) == MAMBA_ERR_MODEL &&
              strncmp(printed, "logits of image", 15) == 0,
          "a model that overflows was timed: %s", printed);
    test_images(path);
    test_limits(path);
    unlink(path);
    tiny_free(&tiny);
    return check_summary();
}
