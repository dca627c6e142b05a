/* Replaces malloc: it aborts while an image runs, to show that nothing is allocated then, and it
 * fails at each call in turn, to show that running out of memory is an error like any other. */
#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "cli/commands.h"
#include "tiny_model.h"

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#include <malloc.h>

/* glibc's own names of the functions that are replaced here. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *memory);

static volatile bool forbidden, seen;
static volatile int fails_after = -1; /* calls before the one that fails; -1: none fails */
static volatile bool failed;

/* Returns whether this call may succeed. */
static bool note(void)
{
    seen = true;
    if (forbidden)
        abort();
    if (fails_after < 0 || fails_after-- > 0)
        return true;
    failed = true;
    return false;
}

static volatile int live;               /* allocated blocks */
static volatile size_t held, most_held; /* their bytes, and the most so far */

static void *counted(void *memory)
{
    live += memory != NULL;
    held += malloc_usable_size(memory);
    most_held = held > most_held ? held : most_held;
    return memory;
}

static void uncount(void *memory)
{
    live -= memory != NULL;
    held -= malloc_usable_size(memory);
}

void *malloc(size_t size)
{
    return note() ? counted(__libc_malloc(size)) : NULL;
}

void *calloc(size_t n, size_t size)
{
    return note() ? counted(__libc_calloc(n, size)) : NULL;
}

void *realloc(void *memory, size_t size)
{
    if (!note())
        return NULL;
    uncount(memory);
    return counted(__libc_realloc(memory, size));
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return note() ? counted(__libc_memalign(alignment, size)) : NULL;
}

void free(void *memory)
{
    uncount(memory);
    __libc_free(memory);
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
#if !defined(_OPENMP) /* OpenMP allocates its threads */
    if (status == MAMBA_OK)
        status = mamba_forward_batch(model, arena, bytes, 1, image, 1, logits, NULL, &error);
#endif
    forbidden = false;
    CHECK(status == MAMBA_OK, "%s: status %d", path, (int)status);
    CHECK(!seen, "%s: something was allocated", path);
    free(arena);
    free(image_u8);
    free(image);
    mamba_model_close(model);
}

/* Runs a command and discards its output. The allocation after `fails_after` others fails. */
static mamba_status run_quietly(command_function command, const struct options *options,
                                mamba_error *error)
{
    fflush(stdout);
    const int kept = dup(STDOUT_FILENO), kept_error = dup(STDERR_FILENO);
    const int null = open("/dev/null", O_WRONLY);
    if (kept < 0 || kept_error < 0 || null < 0 || dup2(null, STDOUT_FILENO) < 0 ||
        dup2(null, STDERR_FILENO) < 0)
        abort();
    mamba_status status = run_command(command, options, error);
    fails_after = -1;
    fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    dup2(kept_error, STDERR_FILENO);
    close(kept), close(kept_error), close(null);
    return status;
}

static void test_every_failure(const char *name, command_function command, struct options options)
{
    int failures = 0;
    mamba_error ignored;
    run_quietly(command, &options, &ignored); /* so that the streams have their buffers */
    do {
        mamba_error error = {MAMBA_OK, ""};
        failed = false;
        fails_after = failures;
        const int before = live, descriptors = tiny_open_descriptors();
        mamba_status status = run_quietly(command, &options, &error);
        CHECK(live == before, "%s, allocation %d: %d blocks were not freed", name, failures + 1,
              live - before);
        CHECK(tiny_open_descriptors() == descriptors, "%s, allocation %d: a file stayed open", name,
              failures + 1);
        if (!failed) {
            CHECK(status == MAMBA_OK, "%s: %s", name, error.message);
        } else {
            failures++;
            CHECK(status == MAMBA_OK || (status == MAMBA_ERR_MEMORY && error.message[0]),
                  "%s, allocation %d: status %d, '%s'", name, failures, status, error.message);
        }
    } while (failed);
    CHECK(failures > 0, "%s: no allocation to fail", name);
    printf("%s: %d allocations failed in turn\n", name, failures);
}

static void write_file_of(const char *path, const unsigned char *head, size_t size, size_t zeros)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(head, 1, size, file) != size)
        abort();
    while (zeros-- > 0)
        putc(0, file);
    if (fclose(file) != 0)
        abort();
}

static void test_commands(const char *model_path)
{
    mamba_model *model;
    if (!CHECK(mamba_model_open(&model, model_path, NULL) == MAMBA_OK, "%s", model_path))
        return;
    const mamba_info info = *mamba_model_info(model);
    mamba_model_close(model);
    const size_t pixels = (size_t)info.height * info.width;
    const unsigned char images[] = {0, 0, 8, 3,
                                    0, 0, 0, 1,
                                    0, 0, 0, (unsigned char)info.height,
                                    0, 0, 0, (unsigned char)info.width};
    static const unsigned char picture[] = "P5 3 2 7\n"; /* a maximum that takes a copy */
    const unsigned char labels[] = {0, 0, 8, 1, 0, 0, 0, 1};
    char folder[] = "/tmp/mamba_allocation_XXXXXX", paths[7][80];
    static const char *const files[] = {"input.bin", "images.idx",  "labels.idx", "logits",
                                        "images.gz", "picture.pgm", "asked"};
    if (!mkdtemp(folder))
        abort();
    for (size_t i = 0; i < 7; i++)
        snprintf(paths[i], sizeof paths[i], "%s/%s", folder, files[i]);
    write_file_of(paths[0], NULL, 0, pixels * sizeof(float));
    write_file_of(paths[1], images, sizeof images, pixels);
    write_file_of(paths[2], labels, sizeof labels, 1);
    write_file_of(paths[5], picture, sizeof picture - 1, 3 * 2);
    char pack[200];
    snprintf(pack, sizeof pack, "gzip -c %s > %s", paths[1], paths[4]);
    if (system(pack) != 0)
        abort();
    for (int copied = 0; copied < 2; copied++) {
        struct options options = {.positional = {model_path, paths[0]},
                                  .access = copied ? FILE_COPIED : FILE_MAPPED};
        test_every_failure("predict", command_predict, options);
        options.positional[1] = paths[5];
        test_every_failure("predict, a picture", command_predict, options);
        test_every_failure("info", command_info, options);
        test_every_failure("embed", command_embed, options);
        options.batch = options.rounds = options.threads = 1;
        options.positional[1] = NULL;
        test_every_failure("bench", command_bench, options);
        options.positional[1] = paths[1];
        test_every_failure("bench of images", command_bench, options);
        options.positional[2] = paths[2];
        options.logits = paths[3];
        options.asked = paths[6];
        test_every_failure("eval", command_eval, options);
        options.positional[1] = paths[4];
        test_every_failure("eval of a gzip file", command_eval, options);
    }
    for (size_t i = 0; i < 7; i++)
        unlink(paths[i]);
    CHECK(rmdir(folder) == 0, "a file was left behind in %s", folder);
}

/* The bench of a model with large images holds its activations and its batch, not more images. */
static void test_memory_of_bench(void)
{
    mamba_info dims = tiny_dims();
    dims.height = dims.width = 2048;
    dims.patch_height = dims.patch_width = 64;
    struct tiny_model tiny = tiny_build(dims, 1);
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    if (!CHECK(mamba_model_from_bytes(&model, tiny.bytes, tiny.size, &error) == MAMBA_OK, "%s",
               error.message))
        return;
    const size_t activations = mamba_context_bytes(model), image = 2048 * 2048;
    mamba_model_close(model);
    tiny_write(tiny_path(), tiny.bytes, tiny.size);
    tiny_free(&tiny);
    const struct options options = {
        .positional = {tiny_path()}, .batch = 2, .threads = 1, .rounds = 1};
    const size_t before = most_held = held;
    CHECK(run_quietly(command_bench, &options, &error) == MAMBA_OK, "%s", error.message);
    CHECK(most_held - before < activations + 2 * image + 1000000,
          "%zu bytes for %zu of activations and two images of %zu", most_held - before, activations,
          image);
    unlink(tiny_path());
}

/* Opening int8 weights takes what docs/format.md says, and nothing before size and checksum agree.
 */
static void test_memory_of_int8(void)
{
    mamba_info dims = tiny_dims();
    dims.weight_type = 1;
    dims.d_model = 1; /* each row of a matrix is one lane of sixteen */
    dims.d_inner = 8192;
    dims.n_layers = 1;
    struct tiny_model tiny = tiny_build(dims, 1);
    for (int damaged = 0; damaged < 2; damaged++) {
        mamba_model *model;
        tiny.bytes[tiny.size - 1] ^= (uint8_t)damaged;
        const size_t before = most_held = held;
        const mamba_status status = mamba_model_from_bytes(&model, tiny.bytes, tiny.size, NULL);
        CHECK(status == (damaged ? MAMBA_ERR_MODEL : MAMBA_OK), "status %d", (int)status);
        CHECK(most_held - before < 100000 + (damaged ? 0 : 64 * tiny.size), "%zu bytes for %zu",
              most_held - before, tiny.size);
        CHECK(damaged || most_held - before > tiny.size, "nothing was expanded");
        mamba_model_close(model);
        CHECK(held == before, "%zu bytes are still held", held - before);
    }
    tiny_free(&tiny);
}

int main(void)
{
    void *volatile memory = malloc(1);
    CHECK(seen, "malloc is not replaced: nothing below would be noticed");
    free(memory);
    test_model("csrc/tests/golden/conv_alternate.bin");
    test_model("csrc/tests/golden/patch_bidirectional_tied.bin");
    test_model("csrc/tests/golden/wide_panels.bin");
    test_commands("csrc/tests/golden/patch_tied.bin");
    test_commands("csrc/tests/golden/pixels_last.bin"); /* its first in_proj is folded */
    test_commands("csrc/tests/golden/int8_weights.bin");
    test_memory_of_bench();
    test_memory_of_int8();
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
