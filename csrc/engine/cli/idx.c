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

mamba_status mamba_idx_check(struct idx *out, const char *path, size_t rank, mamba_error *error)
{
    struct file_bytes *file = &out->file;
    const size_t header = MAGIC_BYTES + rank * DIM_BYTES;
    if (file->size < header)
        return mamba_fail(error, MAMBA_ERR_INPUT, path,
                          "file size: got %zu bytes, expected at least the %zu of an IDX header",
                          file->size, header);
    uint32_t magic = get_u32_big_endian(file->data), expected = IDX_BYTES << 8 | (uint32_t)rank;
    if (magic != expected)
        return mamba_fail(error, MAMBA_ERR_INPUT, path,
                          "IDX magic: got 0x%08X, expected 0x%08X (bytes, %zu dim%s)%s", magic,
                          expected, rank, rank == 1 ? "" : "s",
                          magic >> 16 == 0x1F8B ? "; this is gzip: unpack it" : "");
    uint32_t dims[IDX_IMAGES] = {1, 1, 1};
    uint64_t product = 1; /* at most 2^32 * 4096 * 4096 */
    for (size_t i = 0; i < rank; i++) {
        dims[i] = get_u32_big_endian(file->data + MAGIC_BYTES + i * DIM_BYTES);
        uint32_t max = i == 0 ? UINT32_MAX : IDX_MAX_SIDE;
        if (dims[i] < 1 || dims[i] > max)
            return mamba_fail(error, MAMBA_ERR_INPUT, path, "IDX dim %zu: got %u, expected 1..%u",
                              i, dims[i], max);
        product *= dims[i];
    }
    if (file->size != header + product)
        return mamba_fail(error, MAMBA_ERR_INPUT, path,
                          "file size: got %zu bytes, expected the %llu that follow from its dims",
                          file->size, (unsigned long long)(header + product));
    mamba_status status = mamba_file_rest(file, path, error);
    if (status == MAMBA_OK)
        *out = (struct idx){*file, file->data + header, dims[0], dims[1], dims[2]};
    return status;
}

mamba_status mamba_idx_open(struct idx *out, const char *path, size_t rank, enum file_access access,
                            mamba_error *error)
{
    *out = (struct idx){0};
    mamba_status status = mamba_file_open(&out->file, path, access, error);
    return status == MAMBA_OK ? mamba_idx_check(out, path, rank, error) : status;
}

mamba_status mamba_raw_image_check(struct file_bytes *file, const char *path, size_t height,
                                   size_t width, mamba_error *error)
{
    const size_t n = height * width, bytes = n * sizeof(float);
    if (file->size != bytes)
        return mamba_fail(error, MAMBA_ERR_INPUT, path,
                          "file size: got %zu bytes, expected %zu (%zu x %zu float32)", file->size,
                          bytes, height, width);
    mamba_status status = mamba_file_rest(file, path, error);
    if (status != MAMBA_OK)
        return status;
    const float *pixels = (const float *)(const void *)file->data;
    for (size_t i = 0; i < n; i++)
        if (!mamba_is_finite(pixels[i]) || pixels[i] < 0.0f || pixels[i] > 1.0f)
            return mamba_fail(error, MAMBA_ERR_INPUT, path,
                              "pixel %zu: got %g, expected a number in 0..1", i, (double)pixels[i]);
    return MAMBA_OK;
}
