#include "idx.h"

#include "error.h"
#include "finite.h"

/* IDX: two zero bytes, a type, the number of dims; each dim as u32; the data. Big-endian. */
enum { IDX_BYTES = 0x08 }; /* the type "unsigned byte" */
enum { MAGIC_BYTES = 4, DIM_BYTES = 4 };

static uint32_t get_u32_big_endian(const uint8_t *data)
{
    return (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 |
           (uint32_t)data[3];
}

mamba_status mamba_idx_check(struct idx *out, size_t rank, mamba_error *error)
{
    struct input *input = &out->input;
    const struct file_bytes *file = &input->file;
    const char *path = input->path;
    const uint32_t colours = IDX_BYTES << 8 | IDX_COLOURS,
                   expected = IDX_BYTES << 8 | (uint32_t)rank;
    const uint32_t magic = file->size < MAGIC_BYTES ? 0 : get_u32_big_endian(file->data);
    rank = rank == IDX_IMAGES && magic == colours ? IDX_COLOURS : rank;
    const size_t header = MAGIC_BYTES + rank * DIM_BYTES;
    if (file->size < header)
        return mamba_fail(error, MAMBA_ERR_INPUT, path,
                          "file size: got %zu bytes, expected at least the %zu of an IDX header",
                          file->size, header);
    if (magic != expected && rank != IDX_COLOURS)
        return mamba_fail(error, MAMBA_ERR_INPUT, path,
                          "IDX magic: got 0x%08X, expected 0x%08X (bytes, %zu dim%s)%s", magic,
                          expected, rank, rank == 1 ? "" : "s, or 4 with channels",
                          magic >> 16 == 0x1F8B ? "; this is gzip: unpack it" : "");
    uint32_t dims[IDX_COLOURS] = {1, 1, 1, 1};
    uint64_t product = 1; /* at most 2^32 * 4096 * 4096 * 4 */
    for (size_t i = 0; i < rank; i++) {
        dims[i] = get_u32_big_endian(file->data + MAGIC_BYTES + i * DIM_BYTES);
        const uint32_t max = i == 0 ? UINT32_MAX : i < 3 ? IDX_MAX_SIDE : IDX_MAX_CHANNELS;
        if (dims[i] < 1 || dims[i] > max)
            return mamba_fail(error, MAMBA_ERR_INPUT, path, "IDX dim %zu: got %u, expected 1..%u",
                              i, dims[i], max);
        product *= dims[i];
    }
    mamba_status status = mamba_input_rest(input, header + product, "by its dims", error);
    if (status != MAMBA_OK)
        return status;
    out->data = file->data + header;
    out->n = dims[0];
    out->height = dims[1];
    out->width = dims[2];
    out->channels = dims[3];
    return MAMBA_OK;
}

mamba_status mamba_idx_open(struct idx *out, const char *path, size_t rank, enum file_access access,
                            mamba_error *error)
{
    *out = (struct idx){0};
    mamba_status status = mamba_input_open(&out->input, path, access, error);
    return status == MAMBA_OK ? mamba_idx_check(out, rank, error) : status;
}

mamba_status mamba_idx_check_size(const struct idx *images, const mamba_info *info,
                                  mamba_error *error)
{
    if (images->height != info->height || images->width != info->width ||
        images->channels != info->channels)
        return mamba_fail(error, MAMBA_ERR_INPUT, images->input.path,
                          "image size: got %zu x %zu x %zu, expected the model's %u x %u x %u",
                          images->height, images->width, images->channels, info->height,
                          info->width, info->channels);
    return MAMBA_OK;
}

mamba_status mamba_raw_image_check(struct input *input, size_t n, mamba_error *error)
{
    mamba_status status = mamba_input_rest(
        input, n * sizeof(float),
        "a float32 for each of the model's pixels; a picture must be binary PGM or PPM", error);
    if (status != MAMBA_OK)
        return status;
    const float *pixels = (const float *)(const void *)input->file.data;
    for (size_t i = 0; i < n; i++)
        if (!mamba_is_finite(pixels[i]) || pixels[i] < 0.0f || pixels[i] > 1.0f)
            return mamba_fail(error, MAMBA_ERR_INPUT, input->path,
                              "pixel %zu: got %g, expected a number in 0..1", i, (double)pixels[i]);
    return MAMBA_OK;
}
