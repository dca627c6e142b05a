#define _POSIX_C_SOURCE 200809L

#include "tiny_model.h"

#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

mamba_info tiny_dims(void)
{
    return (mamba_info){
        .height = 4,
        .width = 6,
        .channels = 1,
        .n_classes = 3,
        .patch_height = 2,
        .patch_width = 3,
        .d_model = 5,
        .n_layers = 2,
        .d_state = 4,
        .d_conv = 3,
        .d_inner = 7,
        .dt_rank = 2,
        .members = 1,
        .norm_eps = 1e-5f,
        .pixel_mean = 0.13f,
        .pixel_std = 0.3f,
    };
}

float tiny_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

/* A growing file. */
struct writer {
    uint8_t *bytes;
    size_t size, capacity;
    uint32_t random;
    bool int8; /* weights */
};

static void append(struct writer *writer, const void *data, size_t size)
{
    if (writer->size + size > writer->capacity) {
        writer->capacity = 2 * (writer->size + size);
        writer->bytes = realloc(writer->bytes, writer->capacity);
        if (!writer->bytes)
            abort();
    }
    memcpy(writer->bytes + writer->size, data, size);
    writer->size += size;
}

static void append_float(struct writer *writer, float value)
{
    append(writer, &value, sizeof value);
}

static size_t padded(size_t n)
{
    return (n + 15) / 16 * 16;
}

/* V(n) around `center`, within `spread`. */
static void append_vector(struct writer *writer, size_t n, float center, float spread)
{
    for (size_t i = 0; i < (writer->int8 ? n : padded(n)); i++)
        append_float(writer, i < n ? center + spread * tiny_random(&writer->random) : 0.0f);
}

/* Rows of int8: a scale, and n steps around `center`, within `spread`. */
static void append_rows(struct writer *writer, size_t rows, size_t n, float center, float spread)
{
    for (size_t row = 0; row < rows; row++) {
        const float scale = (fabsf(center) + spread) / 127.0f;
        append_float(writer, scale);
        for (size_t i = 0; i < n; i++) {
            const float value = center + spread * tiny_random(&writer->random);
            append(writer, &(int8_t){(int8_t)lrintf(value / scale)}, 1);
        }
    }
}

/* T(rows, n) around `center`, within `spread`. */
static void append_table(struct writer *writer, size_t rows, size_t n, float center, float spread)
{
    if (writer->int8) {
        append_rows(writer, rows, n, center, spread);
        return;
    }
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < padded(n); i++)
            append_float(writer, i < n ? center + spread * tiny_random(&writer->random) : 0.0f);
}

/* P(out, in), scaled so that outputs are as large as inputs. */
static void append_panels(struct writer *writer, size_t out, size_t in)
{
    const float spread = 1.7f / sqrtf((float)in);
    if (writer->int8) {
        append_rows(writer, out, in, 0.0f, spread);
        return;
    }
    for (size_t panel = 0; panel < padded(out); panel += 16)
        for (size_t i = 0; i < in; i++)
            for (size_t lane = 0; lane < 16; lane++)
                append_float(writer,
                             panel + lane < out ? spread * tiny_random(&writer->random) : 0.0f);
}

/* The header, without the CRC, which tiny_seal sets. */
static void append_header(struct writer *writer, const mamba_info *dims)
{
    static const uint8_t magic[8] = {0x89, 0x4D, 0x41, 0x4D, 0x42, 0x41, 0x0D, 0x0A};
    const uint32_t fields[] = {
        2,
        0,
        0,
        dims->members,
        dims->height,
        dims->width,
        dims->channels,
        dims->n_classes,
        dims->preparation,
        dims->weight_type,
    };
    const float floats[] = {dims->exit_margin, dims->pixel_mean, dims->pixel_std};
    const uint8_t reserved[64] = {0};
    append(writer, magic, sizeof magic);
    append(writer, fields, sizeof fields);
    append(writer, floats, sizeof floats);
    append(writer, &dims->names_bytes, sizeof dims->names_bytes);
    append(writer, reserved, sizeof reserved);
}

static void append_record(struct writer *writer, const mamba_info *dims)
{
    const uint32_t fields[] = {
        dims->tied_a | dims->pos_embed << 1 | dims->local_conv << 2,
        dims->stem,
        dims->patch_height,
        dims->patch_width,
        dims->stem_width,
        dims->d_model,
        dims->n_layers,
        dims->d_state,
        dims->d_conv,
        dims->d_inner,
        dims->dt_rank,
        dims->direction,
        dims->pool,
    };
    const uint32_t reserved[2] = {0};
    append(writer, fields, sizeof fields);
    append(writer, &dims->norm_eps, sizeof dims->norm_eps);
    append(writer, reserved, sizeof reserved);
}

/* The classes are called "0", "1", ... Returns the bytes; appends them unless `writer` is NULL. */
static uint32_t append_names(struct writer *writer, uint32_t n_classes)
{
    const uint8_t zeros[64] = {0};
    uint32_t bytes = 0;
    for (uint32_t i = 0; i < n_classes; i++) {
        char name[12];
        const int size = snprintf(name, sizeof name, "%u", i) + 1;
        if (writer)
            append(writer, name, (size_t)size);
        bytes += (uint32_t)size;
    }
    if (writer)
        append(writer, zeros, (64 - bytes % 64) % 64);
    return (bytes + 63) / 64 * 64;
}

static void append_scan(struct writer *writer, const mamba_info *dims)
{
    append_table(writer, dims->d_conv, dims->d_inner, 0.0f, 0.6f);
    append_vector(writer, dims->d_inner, 0.0f, 0.3f);
    append_panels(writer, dims->dt_rank + 2 * dims->d_state, dims->d_inner);
    append_panels(writer, dims->d_inner, dims->dt_rank);
    append_vector(writer, dims->d_inner, -2.0f, 2.0f);
    for (size_t n = 0; n < dims->d_state && !dims->tied_a; n++)
        append_table(writer, 1, dims->d_inner, -1.4427f * (float)(n + 1), 0.3f);
    if (dims->tied_a)
        append_vector(writer, dims->d_inner, -1.4427f, 0.3f);
    append_vector(writer, dims->d_inner, 1.0f, 0.2f);
}

static void append_tensors(struct writer *writer, const mamba_info *dims, size_t length)
{
    if (dims->stem == 0) {
        append_panels(writer, dims->d_model,
                      (size_t)dims->patch_height * dims->patch_width * dims->channels);
    } else {
        size_t channels = dims->channels;
        if (dims->stem == 2) {
            channels = ((size_t)dims->stem_width + 1) / 2;
            append_panels(writer, channels, 9 * (size_t)dims->channels);
            append_vector(writer, channels, 0.0f, 0.2f);
        }
        append_panels(writer, dims->stem_width, 9 * channels);
        append_vector(writer, dims->stem_width, 0.0f, 0.2f);
        append_panels(writer, dims->d_model, 9 * (size_t)dims->stem_width);
    }
    append_vector(writer, dims->d_model, 0.0f, 0.2f);
    if (dims->pos_embed)
        append_table(writer, length, dims->d_model, 0.0f, 0.2f);
    for (size_t layer = 0; layer < dims->n_layers; layer++) {
        if (dims->local_conv) {
            append_table(writer, 9, dims->d_model, 0.1f, 0.3f);
            append_vector(writer, dims->d_model, 0.0f, 0.2f);
        }
        append_panels(writer, dims->d_inner, dims->d_model);
        append_panels(writer, dims->d_inner, dims->d_model);
        for (int scan = 0; scan < (dims->direction == 2 ? 2 : 1); scan++)
            append_scan(writer, dims);
        append_panels(writer, dims->d_model, dims->d_inner);
    }
    append_panels(writer, dims->n_classes, dims->d_model);
    append_vector(writer, dims->n_classes, 0.0f, 0.2f);
}

/* Sets the fields that follow from others. */
static void complete(mamba_info *dims)
{
    if (dims->stem == 0)
        dims->length = dims->height / dims->patch_height * (dims->width / dims->patch_width);
    else
        dims->length = (dims->height + 3) / 4 * ((dims->width + 3) / 4);
    dims->names_bytes = append_names(NULL, dims->n_classes);
}

const mamba_info *tiny_member(const struct tiny_model *tiny, size_t member)
{
    return member % tiny->n_shapes == 0 ? &tiny->dims : &tiny->other[member % tiny->n_shapes];
}

static struct tiny_model build(struct tiny_model tiny, uint32_t seed)
{
    struct writer writer = {.random = seed, .int8 = tiny.dims.weight_type == 1};
    append_header(&writer, &tiny.dims);
    for (size_t member = 0; member < tiny.dims.members; member++)
        append_record(&writer, tiny_member(&tiny, member));
    append_names(&writer, tiny.dims.n_classes);
    tiny.tensors = writer.size;
    for (size_t member = 0; member < tiny.dims.members; member++) {
        const mamba_info *dims = tiny_member(&tiny, member);
        append_tensors(&writer, dims, dims->length);
    }
    tiny.bytes = writer.bytes;
    tiny.size = writer.size;
    tiny_seal(&tiny);
    return tiny;
}

struct tiny_model tiny_build(mamba_info dims, uint32_t seed)
{
    complete(&dims);
    return build((struct tiny_model){.dims = dims, .n_shapes = 1}, seed);
}

struct tiny_model tiny_build_mixed(const mamba_info *shapes, size_t n_shapes, uint32_t seed)
{
    struct tiny_model tiny = {.dims = shapes[0], .n_shapes = n_shapes};
    for (size_t i = 0; i < n_shapes; i++) {
        tiny.other[i] = shapes[i];
        tiny.other[i].members = (uint32_t)n_shapes;
        complete(&tiny.other[i]);
    }
    tiny.dims = tiny.other[0];
    return build(tiny, seed);
}

void tiny_free(struct tiny_model *tiny)
{
    free(tiny->bytes);
    *tiny = (struct tiny_model){0};
}

uint32_t tiny_get_u32(const struct tiny_model *tiny, size_t offset)
{
    uint32_t value;
    memcpy(&value, tiny->bytes + offset, sizeof value);
    return value;
}

void tiny_put_u32(struct tiny_model *tiny, size_t offset, uint32_t value)
{
    memcpy(tiny->bytes + offset, &value, sizeof value);
}

void tiny_put_f32(struct tiny_model *tiny, size_t offset, float value)
{
    memcpy(tiny->bytes + offset, &value, sizeof value);
}

/* Computes the CRC by bytes; `table` has what each byte leaves, divided bit by bit as defined. */
void tiny_seal(struct tiny_model *tiny)
{
    static uint32_t table[256];
    for (uint32_t byte = 0; byte < 256 && !table[255]; byte++) {
        table[byte] = byte;
        for (int bit = 0; bit < 8; bit++)
            table[byte] = table[byte] >> 1 ^ (table[byte] & 1 ? 0xEDB88320u : 0);
    }
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = TINY_FLAGS; i < tiny->size; i++)
        crc = crc >> 8 ^ table[(crc ^ tiny->bytes[i]) & 0xFF];
    tiny_put_u32(tiny, TINY_CRC, ~crc);
}

const char *tiny_path(void)
{
    static char path[200];
    if (*path)
        return path;
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%.150s/mamba_test_XXXXXX", folder && *folder ? folder : "/tmp");
    int file = mkstemp(path); /* not a name that others can guess */
    if (file < 0 || close(file) != 0) {
        perror(path);
        exit(1);
    }
    return path;
}

void tiny_write(const char *path, const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

mamba_status tiny_open(mamba_model **out, const struct tiny_model *tiny, mamba_error *error)
{
    tiny_write(tiny_path(), tiny->bytes, tiny->size);
#if defined(_WIN32) /* which removes no file that is mapped */
    mamba_status status = mamba_model_read(out, tiny_path(), error);
#else
    mamba_status status = mamba_model_open(out, tiny_path(), error);
#endif
    unlink(tiny_path());
    return status;
}

int tiny_open_descriptors(void)
{
    int open = 0;
#if !defined(_WIN32)
    for (int i = 0; i < 1024; i++)
        open += fcntl(i, F_GETFD) >= 0;
#endif
    return open;
}
