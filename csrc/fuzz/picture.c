/* Prepares a picture of any bytes for a model of any size: it is refused or answered, and a digit
 * that was prepared passes a second time unchanged. The first nine bytes choose the sizes; the
 * others are the pixels, again from the start where there are too few. */
#include "target.h"

enum { HEAD = 9, MAX_BYTES = 1 << 16 };

static size_t get_u16(const uint8_t *data)
{
    return (size_t)(data[0] | data[1] << 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEAD)
        return 0;
    mamba_picture picture = {
        .width = get_u16(data), .height = get_u16(data + 2), .channels = data[4] % 6u};
    const uint32_t preparation = data[5] % 3u, channels = data[6] % 6u;
    const uint32_t height = data[7] % 65u, width = data[8] % 65u;
    picture.row_stride = picture.width * picture.channels + data[4] / 6u;
    if (picture.height * picture.row_stride > MAX_BYTES)
        picture.height = MAX_BYTES / picture.row_stride;
    /* The last row ends with its last pixel. */
    size_t bytes = picture.height * picture.row_stride;
    bytes -= bytes ? data[4] / 6u : 0;
    uint8_t *pixels = malloc(bytes + 1), *out = malloc((size_t)height * width * channels + 1);
    if (!pixels || !out)
        abort();
    for (size_t i = 0; i < bytes; i++)
        pixels[i] = size > HEAD ? data[HEAD + i % (size - HEAD)] : 0;
    uint8_t *exact = exact_copy(pixels, bytes);
    picture.pixels = exact;
    mamba_error error = {MAMBA_OK, ""};
    const mamba_status status =
        mamba_prepare_picture(&picture, preparation, height, width, channels, out, &error);
    if (status != MAMBA_OK && status != MAMBA_ERR_ARGUMENT && status != MAMBA_ERR_EMPTY)
        check_error(status, &error, MAMBA_ERR_INPUT);
    if (status != MAMBA_OK)
        check_error(status, &error, status);
    if (status == MAMBA_OK && preparation == 1) {
        const mamba_picture again = {out, width, height, 1, width};
        uint8_t *twice = exact_copy(out, (size_t)height * width);
        if (mamba_prepare_picture(&again, 1, height, width, 1, twice, NULL) != MAMBA_OK ||
            memcmp(out, twice, (size_t)height * width) != 0)
            abort();
        free(twice);
    }
    free(exact);
    free(pixels);
    free(out);
    return 0;
}
