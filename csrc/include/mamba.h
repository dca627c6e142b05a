/* libmamba: a small Mamba image classifier, run from one model file. C11, no dependencies.
 *
 *     struct mamba_error error;
 *     mamba_model *model;
 *     if (mamba_model_open(&model, "model.bin", &error) != MAMBA_OK)
 *         return complain(error.message);
 *     size_t bytes = mamba_context_bytes(model);
 *     void *arena = malloc(bytes);
 *     mamba_context *context;
 *     if (mamba_context_init(&context, model, arena, bytes, &error) != MAMBA_OK)
 *         return complain(error.message);
 *     float logits[10];                          // n_classes of them: mamba_model_info(model)
 *     mamba_forward(context, pixels, logits);    // as often as wanted: nothing is allocated
 *     free(arena);
 *     mamba_model_close(model);
 *
 * A model never changes after it was opened and is shared freely between threads. A context is
 * one thread's scratch memory: it lives in an arena that the caller owns, holds no resource, and
 * ends when the caller frees the arena. A model must outlive its contexts.
 *
 * The library neither prints nor exits. Every `error` argument may be NULL. */
#ifndef MAMBA_H
#define MAMBA_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MAMBA_API __attribute__((visibility("default")))
#else
#define MAMBA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mamba_model mamba_model;
typedef struct mamba_context mamba_context;

/* Also the exit codes of the `mamba` command. */
typedef enum mamba_status {
    MAMBA_OK = 0,
    MAMBA_ERR_ARGUMENT = 2, /* the caller's mistake; for the command: its usage */
    MAMBA_ERR_IO = 3,       /* a file could not be opened, read or written */
    MAMBA_ERR_MODEL = 4,    /* the model file is not one, is damaged, or its logits overflow */
    MAMBA_ERR_INPUT = 5, /* an input, image or label file is malformed or does not fit the model */
    MAMBA_ERR_MEMORY = 6 /* memory ran out, or would not be addressable */
} mamba_status;

/* What went wrong: the file, the field, what was got, what was expected. */
typedef struct mamba_error {
    mamba_status status;
    char message[256]; /* zero-terminated */
} mamba_error;

/* The header of a model file (docs/format.md says what each field means), and what follows
 * from it. */
typedef struct mamba_info {
    uint32_t height, width, channels, n_classes;
    uint32_t stem; /* 0 patch, 1 conv, 2 conv3 */
    uint32_t patch_height, patch_width, stem_width;
    uint32_t d_model, n_layers, d_state, d_conv, d_inner, dt_rank;
    uint32_t direction; /* 0 forward, 1 alternate, 2 bidirectional, 3 cross */
    uint32_t pool;      /* 0 mean, 1 last */
    uint32_t tied_a, pos_embed, local_conv;
    uint32_t members; /* models whose logits are averaged */
    uint32_t length;  /* tokens of an image */
    float norm_eps, pixel_mean, pixel_std;
    uint64_t parameters; /* floats of all tensors, padding not counted */
    uint64_t file_bytes;
    uint32_t version, crc32;
} mamba_info;

/* The library's version, "major.minor.patch". Static: never freed. */
MAMBA_API const char *mamba_version(void);

/* Maps and checks the model file `path`. On MAMBA_OK, *out belongs to the caller, who ends it
 * with mamba_model_close; on any error *out is NULL. The file stays mapped while the model is open:
 * replace a model file by renaming a new one over it, never by writing into it. Whoever writes into
 * it changes the model behind its checks; whoever shortens it makes the next access end the process
 * with SIGBUS. Where others may do that, use mamba_model_read. */
MAMBA_API mamba_status mamba_model_open(mamba_model **out, const char *path, mamba_error *error);

/* The same from a copy in memory of the file's size: what happens to the file later does not
 * matter. */
MAMBA_API mamba_status mamba_model_read(mamba_model **out, const char *path, mamba_error *error);

/* The same from the `size` bytes of a model file that the caller has in memory, aligned for a
 * float. They are used in place, and must neither change nor go away while the model is open. */
MAMBA_API mamba_status mamba_model_from_bytes(mamba_model **out, const void *bytes, size_t size,
                                              mamba_error *error);

/* Ends a model; NULL is fine. No context of it may be used afterwards. */
MAMBA_API void mamba_model_close(mamba_model *model);

/* The model's dims. The struct belongs to the model and lives as long. */
MAMBA_API const mamba_info *mamba_model_info(const mamba_model *model);

/* The instruction set whose kernels run the model: "avx512", "avx2", "neon" or "scalar". It is the
 * fastest that works here, or what the environment variable MAMBA_ISA named when the model was
 * opened. Bits differ between them, by rounding. Static: never freed. */
MAMBA_API const char *mamba_model_isa(const mamba_model *model);

/* How many bytes the arena of one context needs, at whatever address it begins. */
MAMBA_API size_t mamba_context_bytes(const mamba_model *model);

/* Sets up a context inside the caller's arena. *out points into the arena and is never freed
 * itself. The memory need not be aligned or cleared. */
MAMBA_API mamba_status mamba_context_init(mamba_context **out, const mamba_model *model,
                                          void *arena, size_t arena_bytes, mamba_error *error);

/* Classifies one image. `pixels` [height, width] are not checked to be in 0..1. `logits`
 * [n_classes] is overwritten. Denormal numbers count as zero while this runs (the processor's flag
 * is set and put back), so that a black image costs the same as a digit.
 * Returns MAMBA_ERR_ARGUMENT for a NULL argument, MAMBA_ERR_MODEL if a logit came out as NaN or
 * infinity (finite weights may overflow; so may pixels that are not in 0..1), else MAMBA_OK. */
MAMBA_API mamba_status mamba_forward(mamba_context *context, const float *pixels, float *logits);

/* The same for pixels [height, width] in 0..255: exactly mamba_forward on pixel / 255.0f. */
MAMBA_API mamba_status mamba_forward_u8(mamba_context *context, const uint8_t *pixels,
                                        float *logits);

/* The arena that mamba_forward_batch needs; 0 if `threads` is not in 1..1024 or the size would
 * not fit a size_t. */
MAMBA_API size_t mamba_batch_bytes(const mamba_model *model, int threads);

/* Classifies `images` [n, height, width] into `logits` [n, n_classes], on up to `threads` threads
 * when built with OpenMP, else one by one. The bits of a logit depend on its image alone, never on
 * n or `threads`. The arena is scratch memory of the caller's; two calls that run at the same
 * time need two arenas. All images are classified, also where an error names the first one whose
 * logits are not finite. */
MAMBA_API mamba_status mamba_forward_batch(const mamba_model *model, void *arena,
                                           size_t arena_bytes, int threads, const float *images,
                                           size_t n, float *logits, mamba_error *error);
MAMBA_API mamba_status mamba_forward_batch_u8(const mamba_model *model, void *arena,
                                              size_t arena_bytes, int threads,
                                              const uint8_t *images, size_t n, float *logits,
                                              mamba_error *error);

/* How many threads a batch can use here: 1 when built without OpenMP. */
MAMBA_API int mamba_max_threads(void);

/* Softmax of `logits` [n] into `probabilities` [n]; the two may be the same array. */
MAMBA_API void mamba_softmax(const float *logits, float *probabilities, size_t n);

/* Called after each stage of a forward pass with its result: `data` [rows, cols], consecutive
 * rows row_stride floats apart, valid during the call only. Row t is token t in image order, also
 * of scans that run backwards; inside a cross layer that goes column by column, up to its scan, it
 * is token t of that order. `layer` is -1 outside the layers. Names, in order: "tokens"; for
 * each layer "in_proj.x", "in_proj.z", for its scan "conv" (after SiLU), "x_proj", "delta" (after
 * softplus), "scan" (after D and the gate), the same with the suffix "_b" for the second scan of a
 * bidirectional layer, "residual"; "pooled" (before norm_f's weight, which is part of the head);
 * "logits". Of an ensemble: all of that for each member in turn; its logits are its own. */
typedef void (*mamba_trace)(void *user, const char *name, int layer, const float *data, size_t rows,
                            size_t cols, size_t row_stride);

/* Sets the context's trace; NULL switches it off. `user` is handed through and stays the
 * caller's. */
MAMBA_API void mamba_set_trace(mamba_context *context, mamba_trace trace, void *user);

#ifdef __cplusplus
}
#endif

#endif
