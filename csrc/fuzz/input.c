/* Reads any bytes as the input of `./mamba MODEL INPUT`: they are refused, or give finite logits or
 * a picture. The first two bytes choose the image's size, the others are the file. An image that
 * fits the model is run. Each byte of a picture is read; it comes from a pipe, too. */
#include <unistd.h>

#include "cli/idx.h"
#include "cli/netpbm.h"
#include "finite.h"
#include "target.h"

static const char MODEL[] = "csrc/tests/golden/patch_tied.bin";

static void classify(const float *pixels)
{
    static mamba_context *context; /* kept, because opening a model takes longer than running it */
    static mamba_model *model;
    static void *arena;
    float logits[256];
    if (!context) {
        if (mamba_model_open(&model, MODEL, NULL) != MAMBA_OK ||
            !(arena = malloc(mamba_context_bytes(model))) ||
            mamba_context_init(&context, model, arena, mamba_context_bytes(model), NULL))
            abort();
    }
    if (mamba_forward(context, pixels, logits) != MAMBA_OK)
        abort();
    for (size_t i = 0; i < mamba_model_info(model)->n_classes; i++)
        if (!mamba_is_finite(logits[i]))
            abort();
}

static volatile uint8_t sink;

static mamba_status read_picture(struct input *input)
{
    mamba_picture picture;
    mamba_error error = {MAMBA_OK, ""};
    uint8_t *copy, sum = 0;
    const mamba_status status = mamba_netpbm_read(&picture, &copy, input, &error);
    if (status != MAMBA_OK)
        check_error(status, &error, MAMBA_ERR_INPUT);
    for (size_t i = 0; status == MAMBA_OK && i < picture.height * picture.row_stride; i++)
        sum = (uint8_t)(sum + picture.pixels[i]);
    sink = sum;
    free(copy);
    return status;
}

/* Reads a picture that a pipe can hold as `mamba MODEL -` does. */
static void read_stream(const uint8_t *bytes, size_t size, mamba_status expected)
{
    struct input input = {.path = "stdin", .stream = true};
    int ends[2];
    if (size > 4096)
        return;
    if (pipe(ends) != 0 || write(ends[1], bytes, size) != (ssize_t)size || close(ends[1]) != 0 ||
        mamba_stream_open(&input.file, ends[0], input.path, NULL) != MAMBA_OK ||
        !mamba_is_netpbm(&input.file) || read_picture(&input) != expected)
        abort();
    mamba_input_close(&input);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    const size_t height = 1 + data[0] % 64u, width = 1 + data[1] % 64u;
    uint8_t *bytes = exact_copy(data + 2, size - 2);
    struct input image = {.file = {.data = bytes, .size = size - 2, .access = FILE_BORROWED},
                          .path = "input"};
    if (mamba_is_netpbm(&image.file)) {
        read_stream(bytes, size - 2, read_picture(&image));
        free(bytes);
        return 0;
    }
    mamba_error error = {MAMBA_OK, ""};
    mamba_status status = mamba_raw_image_check(&image, height * width, &error);
    if (status != MAMBA_OK)
        check_error(status, &error, MAMBA_ERR_INPUT);
    else if (height == 8 && width == 8) /* the model's size */
        classify((const float *)(const void *)image.file.data);
    free(bytes);
    return 0;
}
