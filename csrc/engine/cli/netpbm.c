#include "netpbm.h"

#include <ctype.h>
#include <stdlib.h>

#include "error.h"

enum { MAX_VALUE = 65535 };

bool mamba_is_netpbm(const struct file_bytes *file)
{
    return file->size >= 3 && file->data[0] == 'P' && file->data[1] >= '1' &&
           file->data[1] <= '7' && (isspace(file->data[2]) || file->data[2] == '#');
}

/* Reads the number after spaces and comments, within what is read of a stream at first; 0 if it is
 * missing, and any number above MAX_VALUE if it is larger. */
static uint32_t read_number(const struct file_bytes *file, size_t *at)
{
    const size_t end = file->size < STREAM_HEAD_BYTES ? file->size : STREAM_HEAD_BYTES;
    uint32_t value = 0;
    bool in_comment = false;
    for (; *at < end && (in_comment || isspace(file->data[*at]) || file->data[*at] == '#'); ++*at)
        in_comment = file->data[*at] != '\n' && file->data[*at] != '\r' &&
                     (in_comment || file->data[*at] == '#');
    for (; *at < end && isdigit(file->data[*at]); ++*at)
        value = value > MAX_VALUE ? value : 10 * value + file->data[*at] - '0';
    return *at < end && isspace(file->data[*at]) ? value : 0;
}

mamba_status mamba_netpbm_read(mamba_picture *out, uint8_t **copy, struct input *input,
                               mamba_error *error)
{
    const struct file_bytes *file = &input->file;
    const uint8_t kind = file->data[1];
    *copy = NULL;
    if (kind != '5' && kind != '6')
        return mamba_fail(error, MAMBA_ERR_INPUT, input->path,
                          "picture: got P%c, expected P5 (binary PGM) or P6 (binary PPM)", kind);
    size_t at = 2;
    const uint32_t width = read_number(file, &at), height = read_number(file, &at);
    const uint32_t max = read_number(file, &at);
    if (width - 1 >= MAX_VALUE || height - 1 >= MAX_VALUE || max - 1 >= MAX_VALUE)
        return mamba_fail(
            error, MAMBA_ERR_INPUT, input->path,
            "picture header: got width %u, height %u, maximum %u, expected numbers of "
            "1..%d in the first %d bytes",
            width, height, max, MAX_VALUE, STREAM_HEAD_BYTES);
    at++; /* one space ends the header */
    const uint64_t channels = kind == '5' ? 1 : 3, samples = channels * width * height;
    mamba_status status =
        mamba_input_rest(input, at + samples * (max > 255 ? 2 : 1), "by its header", error);
    if (status != MAMBA_OK)
        return status;
    const uint8_t *data = file->data + at;
    *out = (mamba_picture){data, width, height, (size_t)channels, (size_t)(width * channels)};
    if (max == 255)
        return MAMBA_OK;
    out->pixels = *copy = malloc((size_t)samples);
    if (!*copy)
        return mamba_fail(error, MAMBA_ERR_MEMORY, input->path, "no memory for its %llu pixels",
                          (unsigned long long)samples);
    for (size_t i = 0; i < samples; i++) {
        const uint32_t value = max > 255 ? (uint32_t)(data[2 * i] << 8 | data[2 * i + 1]) : data[i];
        (*copy)[i] = (uint8_t)(value >= max ? 255 : (value * 255 + max / 2) / max);
    }
    return MAMBA_OK;
}
