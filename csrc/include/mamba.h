/* libmamba: runs a small Mamba image classifier from one model file. C11, no dependencies.
 *
 *     struct mamba_error error = {MAMBA_OK, ""};
 *     mamba_model *model;
 *     if (mamba_model_open(&model, "model.bin", &error) != MAMBA_OK)
 *         return complain(error.message);
 *     size_t bytes = mamba_context_bytes(model);
 *     void *arena = malloc(bytes);
 *     mamba_context *context;
 *     mamba_status status = mamba_context_init(&context, model, arena, bytes, &error);
 *     float logits[10];                        // mamba_model_info(model)->n_classes
 *     if (status == MAMBA_OK)                  // any number of times; allocates nothing
 *         status = mamba_forward(context, pixels, logits);
 *     free(arena);
 *     mamba_model_close(model);
 *     if (status != MAMBA_OK)                  // mamba_forward sets no message
 *         return complain(error.message[0] ? error.message : "the logits are not finite");
 *
 * A model does not change after it was opened, unless by mamba_set_exit_margin, and threads may
 * share it. A context is the scratch
 * memory of one thread: it lives in an arena that the caller owns, holds no resource, and ends when
 * the caller frees the arena. A model must outlive its contexts.
 *
 * The library neither prints nor exits. Every `error` argument may be NULL. Paths are the system's
 * bytes; on Windows they are UTF-8. */
#ifndef MAMBA_H
#define MAMBA_H

#include <stddef.h>
#include <stdint.h>

/* On Windows, the build of the DLL defines MAMBA_DLL_EXPORT. A program that uses the DLL may define
 * MAMBA_DLL_IMPORT, which saves a jump per call; static builds define neither. */
#if defined(_WIN32) && defined(MAMBA_DLL_EXPORT)
#define MAMBA_API __declspec(dllexport)
#elif defined(_WIN32) && defined(MAMBA_DLL_IMPORT)
#define MAMBA_API __declspec(dllimport)
#elif defined(__GNUC__) && !defined(_WIN32)
#define MAMBA_API __attribute__((visibility("default")))
#else
#define MAMBA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mamba_model mamba_model;
typedef struct mamba_context mamba_context;

/* Status of a call, and exit code of the `mamba` command. */
typedef enum mamba_status {
    MAMBA_OK = 0,
    MAMBA_ERR_ARGUMENT = 2, /* the caller's mistake; of the command: wrong usage */
    MAMBA_ERR_IO = 3,       /* a file could not be opened, read or written */
    MAMBA_ERR_MODEL = 4,    /* not a model file, a damaged one, or its logits overflow */
    MAMBA_ERR_INPUT = 5,  /* an input, image or label file is malformed or does not fit the model */
    MAMBA_ERR_MEMORY = 6, /* out of memory, or more than can be addressed */
    MAMBA_ERR_EMPTY = 7   /* nothing is drawn in a picture */
} mamba_status;

/* Description of a failure: the file, the field, what was got and what was expected. */
typedef struct mamba_error {
    mamba_status status;
    char message[256]; /* zero-terminated */
} mamba_error;

/* The header of a model file and the shape of a member (docs/format.md says what each field means),
 * and values that follow from them. */
typedef struct mamba_info {
    uint32_t height, width, channels, n_classes;
    uint32_t preparation; /* of pictures: 0 resize, 1 mnist */
    uint32_t weight_type; /* 0 float32, 1 int8 */
    uint32_t names_bytes; /* of all class names in the file */
    uint32_t members;     /* models whose logits are averaged */
    float exit_margin;    /* members are asked until their mean is this clear; 0: all are */
    float pixel_mean, pixel_std;
    /* The shape of the member. */
    uint32_t stem; /* 0 patch, 1 conv, 2 conv3 */
    uint32_t patch_height, patch_width, stem_width;
    uint32_t d_model, n_layers, d_state, d_conv, d_inner, dt_rank;
    uint32_t direction; /* 0 forward, 1 alternate, 2 bidirectional, 3 cross */
    uint32_t pool;      /* 0 mean, 1 last */
    uint32_t tied_a, pos_embed, local_conv;
    uint32_t length; /* tokens per image */
    float norm_eps;
    /* The file. */
    uint32_t version, crc32;
    uint64_t parameters; /* floats of the tensors, without padding; export folds some of a
                            checkpoint's into others */
    uint64_t file_bytes;
} mamba_info;

/* Returns the library's version, "major.minor.patch". The string is static. */
MAMBA_API const char *mamba_version(void);

/* Maps and checks the model file `path`. On MAMBA_OK, the caller owns *out and ends it with
 * mamba_model_close; on any error *out is NULL. The file stays mapped while the model is open:
 * replace a model file by renaming a new one over it, never by writing into it. A write changes the
 * model after its checks; if the file is shortened, the next access ends the process with SIGBUS.
 * Where others may do that, use mamba_model_read. A file with int8 weights is expanded to memory of
 * the model's own, and not used once it is open. */
MAMBA_API mamba_status mamba_model_open(mamba_model **out, const char *path, mamba_error *error);

/* Opens a model like mamba_model_open, but copies the file: later changes to it do not matter. */
MAMBA_API mamba_status mamba_model_read(mamba_model **out, const char *path, mamba_error *error);

/* Opens a model like mamba_model_open from the `size` bytes of a model file in memory, aligned for
 * a float. They are used in place, but for int8 weights: they must stay and not change while the
 * model is open. */
MAMBA_API mamba_status mamba_model_from_bytes(mamba_model **out, const void *bytes, size_t size,
                                              mamba_error *error);

/* Ends a model; `model` may be NULL. Its contexts must not be used afterwards. */
MAMBA_API void mamba_model_close(mamba_model *model);

/* Returns the model's dims, which live as long as the model. The shape is that of the first member;
 * `parameters` counts all members. */
MAMBA_API const mamba_info *mamba_model_info(const mamba_model *model);

/* Returns the dims of one member, counted from 0, with its own shape and parameters; NULL for
 * a number beyond the last. */
MAMBA_API const mamba_info *mamba_member_info(const mamba_model *model, uint32_t member);

/* Sets the model's exit_margin, instead of the file's, to 0 or 2^-126 to 1e6: a smaller one needs
 * fewer members, 0 asks all of them. No other thread may use the model meanwhile. */
MAMBA_API mamba_status mamba_set_exit_margin(mamba_model *model, float exit_margin,
                                             mamba_error *error);

/* Returns the name of a class as UTF-8, which lives as long as the model; NULL for a number
 * beyond the last. */
MAMBA_API const char *mamba_class_name(const mamba_model *model, uint32_t class_index);

/* Returns the instruction set of the kernels that run the model: "avx512", "avx2", "neon",
 * "simd128" (WebAssembly) or "scalar". It is the fastest one that works here, or the one that the
 * environment variable MAMBA_ISA named when the model was opened. Results differ between them by
 * rounding, and as docs/format.md says at the limits of a float. The string is static. */
MAMBA_API const char *mamba_model_isa(const mamba_model *model);

/* Returns the bytes that the arena of one context needs, at any alignment. */
MAMBA_API size_t mamba_context_bytes(const mamba_model *model);

/* Sets up a context in the caller's arena, which need not be aligned or cleared. *out points into
 * the arena: do not free it. */
MAMBA_API mamba_status mamba_context_init(mamba_context **out, const mamba_model *model,
                                          void *arena, size_t arena_bytes, mamba_error *error);

/* Classifies one image: sets `logits` [n_classes]. `pixels` [height, width, channels] should be
 * in 0..1, which is not checked. Returns MAMBA_ERR_ARGUMENT for a NULL argument, MAMBA_ERR_MODEL if
 * a number that a logit depends on is not finite (finite weights can overflow, and so can pixels
 * outside 0..1), else MAMBA_OK.
 *
 * While a model is opened or runs, or a picture is prepared, the processor rounds to nearest,
 * raises no exceptions and counts denormal numbers as zero (so that a black image takes no longer
 * than a digit). The caller's mode does not matter and is restored. */
MAMBA_API mamba_status mamba_forward(mamba_context *context, const float *pixels, float *logits);

/* Classifies pixels [height, width, channels] in 0..255, exactly as mamba_forward does pixel /
 * 255.0f. */
MAMBA_API mamba_status mamba_forward_u8(mamba_context *context, const uint8_t *pixels,
                                        float *logits);

/* Returns how many members the context's last image needed: 1 to `members`, or 0 before the first.
 * The members are asked in their order until the two best classes of their mean logits are further
 * apart than exit_margin, or all have answered. Logits are the mean over those that were asked. */
MAMBA_API uint32_t mamba_members_asked(const mamba_context *context);

/* Returns the bytes of the arena that mamba_forward_batch needs; 0 if `threads` is not in 1..1024
 * or the size does not fit a size_t. */
MAMBA_API size_t mamba_batch_bytes(const mamba_model *model, int threads);

/* Classifies `images` [n, height, width, channels] into `logits` [n, n_classes], on up to `threads`
 * threads if built with OpenMP, else on one; in a process that was forked after the library was
 * loaded also on one, because OpenMP's threads do not survive a fork. The bits of a logit depend on
 * its image alone, never on n or `threads`. The arena is scratch memory of the caller; two calls
 * that run at the same time need two arenas. If the logits of an image are not finite, the error
 * names the first such image, and all images are classified nevertheless.
 *
 * Sets `asked` [n], unless it is NULL, to the number of members that each image needed. */
MAMBA_API mamba_status mamba_forward_batch(const mamba_model *model, void *arena,
                                           size_t arena_bytes, int threads, const float *images,
                                           size_t n, float *logits, uint8_t *asked,
                                           mamba_error *error);
MAMBA_API mamba_status mamba_forward_batch_u8(const mamba_model *model, void *arena,
                                              size_t arena_bytes, int threads,
                                              const uint8_t *images, size_t n, float *logits,
                                              uint8_t *asked, mamba_error *error);

/* Returns how many threads a batch can use here: 1 if built without OpenMP or if forked. */
MAMBA_API int mamba_max_threads(void);

/* Writes the softmax of `logits` [n] to `probabilities` [n], which may be the same array. */
MAMBA_API void mamba_softmax(const float *logits, float *probabilities, size_t n);

/* A picture: rows of width * channels bytes, row_stride bytes apart. */
typedef struct mamba_picture {
    const uint8_t *pixels;
    size_t width, height; /* 1..65,535 */
    size_t channels;      /* 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha (not premultiplied) */
    size_t row_stride;
} mamba_picture;

/* Sets `out` [height, width, channels] to what a model sees of a picture (docs/pictures.md).
 * `preparation` is 0 to scale it to the model's size, or 1 to find the digit in it and show it as
 * MNIST does: bright on dark, in a box of 20/28 of the side, its centre of mass in the middle. The
 * second needs a model of one channel; its own results and most of MNIST's images pass unchanged.
 *
 * Returns MAMBA_ERR_EMPTY if nothing is drawn; MAMBA_ERR_INPUT for a picture without pixels, with a
 * side above 65,535 or of more than 4 channels; MAMBA_ERR_ARGUMENT for other arguments that are out
 * of range. Allocates nothing, and uses 100 KB of the stack. */
MAMBA_API mamba_status mamba_prepare_picture(const mamba_picture *picture, uint32_t preparation,
                                             uint32_t height, uint32_t width, uint32_t channels,
                                             uint8_t *out, mamba_error *error);

/* Sets `pixels` to what this model sees of a picture, for mamba_forward_u8. */
MAMBA_API mamba_status mamba_prepare_for_model(const mamba_model *model,
                                               const mamba_picture *picture, uint8_t *pixels,
                                               mamba_error *error);

/* A function that is called after each stage of a forward pass with its result: `data` [rows,
 * cols], consecutive rows row_stride floats apart, valid only during the call. Row t is token t in
 * image order, also of scans that run backwards. Only inside the column layers of cross, up to the
 * scan, rows are in column order. `layer` is -1 outside the layers. Names, in order:
 *
 *     "tokens"
 *     for each layer:
 *         "local"                     with local_conv
 *         "in_proj.x", "in_proj.z"
 *         "conv"                      after SiLU
 *         "x_proj"
 *         "delta"                     after softplus
 *         "scan"                      after D and the gate
 *         "conv_b", "x_proj_b", "delta_b", "scan_b"   the second scan of a bidirectional layer
 *         "residual"
 *     "pooled"                        before norm_f's weight, which is part of the head
 *     "logits"
 *
 * An ensemble repeats all of it for each member, with the member's own logits. */
typedef void (*mamba_trace)(void *user, const char *name, int layer, const float *data, size_t rows,
                            size_t cols, size_t row_stride);

/* Sets the context's trace, or removes it if `trace` is NULL. `user` is passed on to it. */
MAMBA_API void mamba_set_trace(mamba_context *context, mamba_trace trace, void *user);

#ifdef __cplusplus
}
#endif

#endif
