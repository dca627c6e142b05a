/* Any bytes as a model are refused with a reason, or give finite logits or an error, and no byte
 * outside them is read. Every sweep runs twice: as it is, where the checksum refuses nearly
 * everything, and with a corrected checksum, so that every later check is reached. */
#define _DEFAULT_SOURCE
#define _FILE_OFFSET_BITS 64

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "crc32.h"
#include "file_bytes.h"
#include "tiny_model.h"

/* Bytes that end at the end of a page, before a page that cannot be read. Their beginning is
 * aligned for a float, so that up to 3 bytes are left after an int8 model. */
struct guarded {
    uint8_t *map, *bytes;
    size_t map_size, size;
};

static struct guarded guard(const void *bytes, size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (size + page - 1) / page * page;
    struct guarded guarded = {.map_size = room + page, .size = size};
    guarded.map =
        mmap(NULL, guarded.map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guarded.map == MAP_FAILED || mprotect(guarded.map + room, page, PROT_NONE) != 0)
        abort();
    guarded.bytes = guarded.map + (room - size) / sizeof(float) * sizeof(float);
    memcpy(guarded.bytes, bytes, size);
    return guarded;
}

static void end_guard(struct guarded *guarded)
{
    munmap(guarded->map, guarded->map_size);
}

/* A fast tiny_seal, for a hundred thousand calls. test_model compares mamba_crc32 with it. */
static void seal(uint8_t *bytes, size_t size)
{
    const uint32_t crc = mamba_crc32(bytes + TINY_FLAGS, size - TINY_FLAGS);
    memcpy(bytes + TINY_CRC, &crc, sizeof crc);
}

/* Runs one image; checks that the logits are finite if the status is MAMBA_OK. */
static mamba_status answer(const mamba_model *model)
{
    const mamba_info *info = mamba_model_info(model);
    const size_t pixels = (size_t)info->height * info->width * info->channels;
    const size_t bytes = mamba_context_bytes(model);
    float logits[256];
    uint8_t *image = malloc(pixels);
    void *arena = malloc(bytes);
    mamba_context *context;
    mamba_status status = MAMBA_ERR_MEMORY;
    if (image && arena &&
        (status = mamba_context_init(&context, model, arena, bytes, NULL)) == MAMBA_OK) {
        for (size_t i = 0; i < pixels; i++)
            image[i] = (uint8_t)(i * 37);
        status = mamba_forward_u8(context, image, logits);
        for (size_t i = 0; i < info->n_classes && status == MAMBA_OK; i++)
            CHECK(isfinite(logits[i]), "logit %zu is %g", i, (double)logits[i]);
    }
    free(arena);
    free(image);
    return status;
}

/* Opens damaged bytes and, if they open, runs them. */
static mamba_status try_bytes(const uint8_t *bytes, size_t size, const char *what)
{
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    mamba_status status = mamba_model_from_bytes(&model, bytes, size, &error);
    if (status == MAMBA_OK) {
        status = answer(model);
        CHECK(status == MAMBA_OK || status == MAMBA_ERR_MODEL, "%s: status %d", what, status);
    } else {
        CHECK(status == MAMBA_ERR_MODEL && error.status == status, "%s: %d", what, status);
        CHECK(strstr(error.message, "got") && strstr(error.message, "expected"),
              "%s: does not say what was got and what was expected: %s", what, error.message);
    }
    mamba_model_close(model);
    return status;
}

/* Flips each bit of the first `limit` bytes of a model, and ends it. A sample is every 7th: one or
 * two of each byte. */
static void test_every_bit(struct tiny_model tiny, size_t limit)
{
    const size_t step = only_a_sample() ? 7 : 1;
    struct guarded guarded = guard(tiny.bytes, tiny.size);
    size_t answered = 0, overflowed = 0, refused = 0;
    CHECK(try_bytes(guarded.bytes, guarded.size, "unchanged") == MAMBA_OK, "does not run");
    for (size_t bit = 0; bit < 8 * (tiny.size < limit ? tiny.size : limit); bit += step) {
        char what[40];
        snprintf(what, sizeof what, "bit %zu of byte %zu", bit % 8, bit / 8);
        guarded.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        mamba_model *model;
        mamba_status status = mamba_model_from_bytes(&model, guarded.bytes, guarded.size, NULL);
        CHECK(status == MAMBA_ERR_MODEL && !model, "%s: opens as it is", what);
        mamba_model_close(model);
        seal(guarded.bytes, guarded.size);
        status = try_bytes(guarded.bytes, guarded.size, what);
        answered += status == MAMBA_OK;
        refused += status != MAMBA_OK;
        overflowed += status == MAMBA_ERR_MODEL && bit / 8 >= tiny.tensors;
        memcpy(guarded.bytes, tiny.bytes, tiny.size);
    }
    printf("%zu sealed flips answered, %zu refused, of which %zu in the weights\n", answered,
           refused, overflowed);
    CHECK(answered > 0 && refused > 0, "all were answered, or all were refused");
    end_guard(&guarded);
    tiny_free(&tiny);
}

static void expect_too_short(const uint8_t *bytes, size_t size)
{
    mamba_model *model;
    mamba_error error;
    CHECK(mamba_model_from_bytes(&model, bytes, size, &error) == MAMBA_ERR_MODEL &&
              strstr(error.message, "file size"),
          "%zu bytes: %s", size, error.message);
    mamba_model_close(model);
}

/* Cuts the file off after any byte, as it is and sealed again: the check of the size must refuse
 * it. The bytes end at a guard page where the alignment of floats allows it, else at the end of
 * their memory, for ASan. */
static void test_truncations(uint32_t weight_type)
{
    mamba_info dims = tiny_dims();
    dims.weight_type = weight_type;
    struct tiny_model tiny = tiny_build(dims, 22);
    for (size_t size = tiny.size; size-- > 0;) {
        const bool aligned = size % sizeof(float) == 0;
        struct guarded guarded = {0};
        if (aligned)
            guarded = guard(tiny.bytes, size);
        uint8_t *bytes = aligned ? guarded.bytes : malloc(size);
        if (!bytes)
            abort();
        memcpy(bytes, tiny.bytes, size);
        expect_too_short(bytes, size);
        if (size > TINY_FLAGS) {
            seal(bytes, size);
            expect_too_short(bytes, size);
        }
        if (aligned)
            end_guard(&guarded);
        else
            free(bytes);
    }
    tiny_free(&tiny);
}

/* Each instruction set on every architecture, with a guard page after the last weight. */
static void test_guard_page(void)
{
    const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
    for (uint32_t i = 0; i < 4 * 48; i++) {
        mamba_info dims = tiny_dims();
        dims.tied_a = i & 1;
        dims.pos_embed = i >> 1 & 1;
        dims.local_conv = i / 3 & 1;
        dims.direction = i / 4 % 4;
        dims.members = i % 7 ? 1 : 2;
        dims.d_state = i % 5 == 0 ? 17 : 4;
        dims.channels = 1 + i / 2 % 4;
        dims.weight_type = i / 5 % 2;
        if (i / 16 % 3) {
            dims.stem = i / 16 % 3;
            dims.patch_height = dims.patch_width = 0;
            dims.stem_width = 3;
        } else if (i % 2) { /* fewer pixels than d_model: the first in_proj is folded */
            dims.patch_height = 1;
        }
        struct tiny_model tiny = tiny_build(dims, i);
        struct guarded guarded = guard(tiny.bytes, tiny.size);
        mprotect(guarded.map, guarded.map_size - (size_t)sysconf(_SC_PAGESIZE), PROT_READ);
        mamba_model *model;
        setenv("MAMBA_ISA", names[i / 48], 1);
        mamba_status status = mamba_model_from_bytes(&model, guarded.bytes, guarded.size, NULL);
        if (status != MAMBA_ERR_ARGUMENT) /* not an instruction set of this machine */
            CHECK(status == MAMBA_OK && answer(model) == MAMBA_OK, "architecture %u", i);
        unsetenv("MAMBA_ISA");
        mamba_model_close(model);
        end_guard(&guarded);
        tiny_free(&tiny);
    }
}

/* Each dim is allowed, but together they demand more memory than docs/format.md allows. */
static void test_activations(void)
{
    const struct {
        const char *field;
        size_t offset;
        uint32_t value;
    } wide[] = {{"d_model", 148, 257}, {"d_inner", 164, 257}, {"dt_rank + 2 d_state", 168, 249}};
    mamba_info dims = tiny_dims();
    dims.height = dims.width = 256;
    dims.patch_height = dims.patch_width = 1; /* 65,536 tokens */
    struct tiny_model tiny = tiny_build(dims, 23);
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) {
        const uint32_t good = tiny_get_u32(&tiny, wide[i].offset);
        mamba_model *model;
        mamba_error error;
        tiny_put_u32(&tiny, wide[i].offset, wide[i].value);
        seal(tiny.bytes, tiny.size);
        mamba_status status = mamba_model_from_bytes(&model, tiny.bytes, tiny.size, &error);
        CHECK(status == MAMBA_ERR_MODEL &&
                  strncmp(error.message, wide[i].field, strlen(wide[i].field)) == 0,
              "%s: %s", wide[i].field, error.message);
        tiny_put_u32(&tiny, wide[i].offset, wide[i].value - 1); /* just allowed */
        seal(tiny.bytes, tiny.size);
        status = mamba_model_from_bytes(&model, tiny.bytes, tiny.size, &error);
        CHECK(strstr(error.message, "file size"), "%s: %s", wide[i].field, error.message);
        tiny_put_u32(&tiny, wide[i].offset, good);
    }
    tiny_free(&tiny);
}

/* The largest image, and one channel more. */
static void test_image_values(void)
{
    mamba_info dims = tiny_dims();
    dims.height = dims.width = 4096;
    dims.patch_height = dims.patch_width = 4096;
    for (dims.channels = 1; dims.channels <= 2; dims.channels++) {
        struct tiny_model tiny = tiny_build(tiny_dims(), 33);
        mamba_model *model;
        mamba_error error = {MAMBA_OK, ""};
        tiny_put_u32(&tiny, 24, dims.height);
        tiny_put_u32(&tiny, 28, dims.width);
        tiny_put_u32(&tiny, 32, dims.channels);
        tiny_put_u32(&tiny, 136, dims.patch_height);
        tiny_put_u32(&tiny, 140, dims.patch_width);
        seal(tiny.bytes, tiny.size);
        CHECK(mamba_model_from_bytes(&model, tiny.bytes, tiny.size, &error) == MAMBA_ERR_MODEL &&
                  strstr(error.message, dims.channels == 1 ? "file size" : "channels: got 2 at"),
              "%s", error.message);
        tiny_free(&tiny);
    }
}

/* Checks the limit of the conv stems' activations, of which the first convolution has the most.
 * `widest` is the largest stem_width that is allowed. */
static void test_stem_activations(uint32_t stem, uint32_t widest, const char *field)
{
    mamba_info dims = tiny_dims();
    dims.stem = stem;
    dims.patch_height = dims.patch_width = 0;
    dims.height = dims.width = 1000;
    for (dims.stem_width = widest; dims.stem_width <= widest + 1; dims.stem_width++) {
        struct tiny_model tiny = tiny_build(dims, 26);
        mamba_model *model;
        mamba_error error = {MAMBA_OK, ""};
        mamba_status status = mamba_model_from_bytes(&model, tiny.bytes, tiny.size, &error);
        if (dims.stem_width == widest)
            CHECK(status == MAMBA_OK, "%s", error.message);
        else
            CHECK(status == MAMBA_ERR_MODEL && strncmp(error.message, field, strlen(field)) == 0,
                  "%s", error.message);
        mamba_model_close(model);
        tiny_free(&tiny);
    }
}

/* The weights are finite, but their sums are not. */
static void test_overflow(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 24);
    const size_t bias = tiny.size - 16 * sizeof(float), weights = bias - 16 * 5 * sizeof(float);
    for (size_t offset = weights; offset < bias; offset += 16 * sizeof(float))
        for (size_t i = 0; i < tiny.dims.n_classes; i++)
            tiny_put_f32(&tiny, offset + i * sizeof(float), 3e38f);
    tiny_put_f32(&tiny, bias, 3e38f);
    seal(tiny.bytes, tiny.size);
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    CHECK(mamba_model_from_bytes(&model, tiny.bytes, tiny.size, &error) == MAMBA_OK, "%s",
          error.message);
    const size_t bytes = mamba_batch_bytes(model, 2);
    void *arena = malloc(bytes);
    uint8_t images[2 * 24] = {0};
    float logits[2 * 3];
    memset(images + 24, 255, 24);
    mamba_status status =
        mamba_forward_batch_u8(model, arena, bytes, 2, images, 2, logits, NULL, &error);
    CHECK(status == MAMBA_ERR_MODEL && strstr(error.message, "image "), "status %d: %s", status,
          error.message);
    free(arena);
    mamba_model_close(model);
    tiny_free(&tiny);
}

/* A copy does not change with its file; borrowed bytes must be aligned. */
static void test_access(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 25);
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    tiny_write(tiny_path(), tiny.bytes, tiny.size);
    CHECK(mamba_model_read(&model, tiny_path(), &error) == MAMBA_OK, "%s", error.message);
    CHECK(truncate(tiny_path(), 0) == 0, "truncate");
    CHECK(answer(model) == MAMBA_OK, "the copy has changed with its file");
    mamba_model_close(model);
    CHECK(mamba_model_read(&model, tiny_path(), &error) == MAMBA_ERR_MODEL, "an empty file");
    unlink(tiny_path());
    CHECK(mamba_model_read(&model, tiny_path(), &error) == MAMBA_ERR_IO && !model, "no file");
    CHECK(mamba_model_from_bytes(&model, tiny.bytes + 1, 8, &error) == MAMBA_ERR_ARGUMENT, "odd");
    CHECK(mamba_model_from_bytes(&model, NULL, 8, &error) == MAMBA_ERR_ARGUMENT, "NULL");
    CHECK(mamba_model_from_bytes(&model, NULL, 0, &error) == MAMBA_ERR_MODEL, "nothing");
    CHECK(mamba_model_from_bytes(NULL, tiny.bytes, tiny.size, &error) == MAMBA_ERR_ARGUMENT, "out");
    tiny_free(&tiny);
}

/* A model of int8 weights does not use its file once it is open: a float32 model would crash. */
static void test_expanded(void)
{
    mamba_info dims = tiny_dims();
    dims.weight_type = 1;
    struct tiny_model tiny = tiny_build(dims, 34);
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    tiny_write(tiny_path(), tiny.bytes, tiny.size);
    if (CHECK(mamba_model_open(&model, tiny_path(), &error) == MAMBA_OK, "%s", error.message)) {
        CHECK(truncate(tiny_path(), 0) == 0, "truncate");
        CHECK(answer(model) == MAMBA_OK, "no answer without the file");
    }
    mamba_model_close(model);
    unlink(tiny_path());
    tiny_free(&tiny);
}

/* A file shrinks before its copy is complete. */
static void test_shrinking(void)
{
    mamba_info dims = tiny_dims();
    dims.d_inner = 1000; /* more than FILE_HEAD_BYTES */
    struct tiny_model tiny = tiny_build(dims, 27);
    struct file_bytes file;
    mamba_error error = {MAMBA_OK, ""};
    tiny_write(tiny_path(), tiny.bytes, tiny.size);
    CHECK(mamba_file_open(&file, tiny_path(), FILE_COPIED, &error) == MAMBA_OK, "%s",
          error.message);
    CHECK(truncate(tiny_path(), 70000) == 0, "truncate");
    CHECK(mamba_file_rest(&file, file.size, tiny_path(), &error) == MAMBA_ERR_IO &&
              strstr(error.message, "got 70000 bytes") &&
              strstr(error.message, "when it was opened"),
          "%s", error.message);
    mamba_file_close(&file);
    unlink(tiny_path());
    tiny_free(&tiny);
}

/* A huge file (all holes) is refused for its size before a copy takes memory or time. */
static void test_large_copy(void)
{
    struct tiny_model tiny = tiny_build(tiny_dims(), 28);
    mamba_model *model;
    mamba_error error = {MAMBA_OK, ""};
    tiny_write(tiny_path(), tiny.bytes, tiny.size);
    if (truncate(tiny_path(), sizeof(size_t) > 4 ? (off_t)1 << 40 : (off_t)1 << 30) == 0)
        CHECK(mamba_model_read(&model, tiny_path(), &error) == MAMBA_ERR_MODEL &&
                  strstr(error.message, "file size"),
              "%s", error.message);
    unlink(tiny_path());
    tiny_free(&tiny);
}

/* The most memory that the dims of a model can demand per thread, with the limits of
 * docs/format.md: with dims without padding, and with those that padding enlarges most. */
static void test_memory_of_a_context(bool padded)
{
    mamba_info dims = tiny_dims();
    dims.direction = 2;
    dims.n_layers = 1;
    for (uint32_t stem = 0; stem < 3; stem++) {
        dims.height = dims.width = stem ? 1024 : 4096; /* 65,536 tokens */
        dims.height -= padded ? (stem ? 4 : 16) : 0;   /* a row less */
        dims.stem = stem;
        dims.patch_height = dims.patch_width = stem ? 0 : 16;
        dims.stem_width = stem == 0 ? 0 : (stem == 1 ? 64 : 32);
        dims.d_model = dims.d_inner = padded ? 257 : 256;
        dims.dt_rank = padded ? 249 : 248;
        struct tiny_model tiny = tiny_build(dims, 29);
        mamba_model *model;
        mamba_error error = {MAMBA_OK, ""};
        if (CHECK(mamba_model_from_bytes(&model, tiny.bytes, tiny.size, &error) == MAMBA_OK, "%s",
                  error.message)) {
            const size_t bytes = mamba_context_bytes(model);
            CHECK(bytes > 500000000 && bytes < 1000000000, "%zu bytes", bytes);
        }
        mamba_model_close(model);
        tiny_free(&tiny);
    }
}

struct replacer {
    const struct tiny_model *models; /* [2] */
    const char *path;
    atomic_bool stop;
};

static void *replace(void *argument)
{
    struct replacer *replacer = argument;
    char name[250];
    snprintf(name, sizeof name, "%s.new", replacer->path);
    for (size_t i = 0; !replacer->stop; i++) {
        tiny_write(name, replacer->models[i % 2].bytes, replacer->models[i % 2].size);
        if (rename(name, replacer->path) != 0)
            abort();
    }
    return NULL;
}

/* While another thread renames large and small files over the path, each call opens one of them,
 * never the size of one with the bytes of the other. */
static void test_replacing(void)
{
    mamba_info large = tiny_dims();
    large.d_inner = 70;
    struct tiny_model models[2] = {tiny_build(tiny_dims(), 30), tiny_build(large, 31)};
    const char *path = tiny_path(); /* once: its memory is static */
    struct replacer replacer = {.models = models, .path = path};
    pthread_t thread;
    tiny_write(path, models[0].bytes, models[0].size);
    if (pthread_create(&thread, NULL, replace, &replacer) != 0)
        abort();
    size_t seen[2] = {0};
    for (int i = 0; i < 50000 && (i < 2000 || !seen[0] || !seen[1]); i++) {
        mamba_model *model;
        mamba_error error = {MAMBA_OK, ""};
        mamba_status status = (i % 2 ? mamba_model_open : mamba_model_read)(&model, path, &error);
        if (CHECK(status == MAMBA_OK, "opening %d: %s", i, error.message))
            seen[mamba_model_info(model)->d_inner == 70]++;
        mamba_model_close(model);
    }
    replacer.stop = true;
    pthread_join(thread, NULL);
    CHECK(seen[0] && seen[1], "the file was never replaced");
    unlink(path);
    tiny_free(&models[0]);
    tiny_free(&models[1]);
}

int main(void)
{
    mamba_info other = tiny_dims();
    other.stem = 1;
    other.patch_height = other.patch_width = 0;
    other.stem_width = 3;
    other.direction = 2;
    other.tied_a = other.pos_embed = other.local_conv = 1;
    other.members = 2;
    mamba_info folded = tiny_dims(); /* fewer pixels than d_model */
    folded.patch_height = 1;
    folded.pos_embed = 1;
    folded.n_layers = 1;
    const size_t of_the_fold = 1664; /* the header, the stem, positions and the first in_proj */
    mamba_info mixed[2] = {folded, other};
    mixed[0].channels = mixed[1].channels = 3;
    mamba_info int8 = tiny_dims();
    int8.weight_type = 1;
    test_every_bit(tiny_build(tiny_dims(), 21), SIZE_MAX);
    test_every_bit(tiny_build(int8, 21), SIZE_MAX);
    test_every_bit(tiny_build(folded, 21), of_the_fold);
    test_every_bit(tiny_build(other, 21), TINY_HEADER + 2 * TINY_RECORD + 64);
    test_every_bit(tiny_build_mixed(mixed, 2, 21), TINY_HEADER + 2 * TINY_RECORD + 64);
    test_truncations(0);
    test_truncations(1);
    test_guard_page();
    test_activations();
    test_image_values();
    test_stem_activations(1, 67, "stem_width"); /* of 500 * 500 places */
    test_stem_activations(2, 32, "half of stem_width");
    test_overflow();
    test_access();
    test_expanded();
    test_shrinking();
    test_large_copy();
    test_memory_of_a_context(false);
    test_memory_of_a_context(true);
    test_replacing();
    return check_summary();
}
