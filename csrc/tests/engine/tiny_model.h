/* Small random model files, written as docs/format.md says, without any code of the engine's
 * loader: the two check each other. */
#ifndef MAMBA_TESTS_TINY_MODEL_H
#define MAMBA_TESTS_TINY_MODEL_H

#include "mamba.h"

enum { TINY_SHAPES = 3 };

struct tiny_model {
    mamba_info dims;               /* of the first member */
    mamba_info other[TINY_SHAPES]; /* of the members after it: member i has other[i % n_shapes] */
    size_t n_shapes;               /* 1: all have the first one's */
    uint8_t *bytes;                /* [size] */
    size_t size, tensors;          /* of the file; where the first tensor is */
};

/* Offsets in the header, for tests that damage it. */
enum { TINY_CRC = 12, TINY_FLAGS = 16, TINY_HEADER = 128, TINY_RECORD = 64 };

/* Returns the dims of a patch model of 4x6 pixels, of which a test changes what it needs. */
mamba_info tiny_dims(void);

/* Builds a model file; fields that follow from the others need not be set. End it with tiny_free.
 */
struct tiny_model tiny_build(mamba_info dims, uint32_t seed);

/* Builds a model of n_shapes <= TINY_SHAPES members of different shapes. */
struct tiny_model tiny_build_mixed(const mamba_info *shapes, size_t n_shapes, uint32_t seed);

/* Returns the dims of a member. */
const mamba_info *tiny_member(const struct tiny_model *tiny, size_t member);
void tiny_free(struct tiny_model *tiny);

uint32_t tiny_get_u32(const struct tiny_model *tiny, size_t offset);
void tiny_put_u32(struct tiny_model *tiny, size_t offset, uint32_t value);
void tiny_put_f32(struct tiny_model *tiny, size_t offset, float value);

/* Corrects the checksum. */
void tiny_seal(struct tiny_model *tiny);

/* Returns the name of a temporary file of this process, in static memory. */
const char *tiny_path(void);
void tiny_write(const char *path, const void *bytes, size_t size);

/* Writes the file, opens it and removes it: the mapping stays. On Windows the model is a copy. */
mamba_status tiny_open(mamba_model **out, const struct tiny_model *tiny, mamba_error *error);

/* Returns how many descriptors of this process are open; always 0 on Windows. */
int tiny_open_descriptors(void);

/* Returns a uniform number in -1..1, the same everywhere. */
float tiny_random(uint32_t *state);

#endif
