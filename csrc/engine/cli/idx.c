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

/* Reads dims [rank] of an IDX file of bytes, checks that the file has the size that follows from
 * them, and reads the rest of a copy. */
static mamba_status check_idx(struct file_bytes *file, uint32_t *dims, size_t rank,
                              const char *path, mamba_error *error)
{
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
    uint64_t bytes = header; /* at most 2^32 * 4096 * 4096 beyond the header */
    uint64_t product = 1;
    for (size_t i = 0; i < rank; i++) {
        dims[i] = get_u32_big_endian(file->data + MAGIC_BYTES + i * DIM_BYTES);
        uint32_t max = i == 0 ? UINT32_MAX : IDX_MAX_SIDE;
        if (dims[i] < 1 || dims[i] > max)
            return mamba_fail(error, MAMBA_ERR_INPUT, path, "IDX dim %zu: got %u, expected 1..%u",
                              i, dims[i], max);
        product *= dims[i];
    }
    bytes += product;
    if (file->size != bytes)
        return mamba_fail(error, MAMBA_ERR_INPUT, path,
                          "file size: got %zu bytes, expected the %llu that follow from its dims",
                          file->size, (unsigned long long)bytes);
    return mamba_file_rest(file, path, error);
}

mamba_status mamba_idx_images_check(struct idx_images *images, const char *path, mamba_error *error)
{
    enum { RANK = 3 };
    uint32_t dims[RANK] = {0};
    mamba_status status = check_idx(&images->file, dims, RANK, path, error);
    if (status != MAMBA_OK)
        return status;
    images->n = dims[0];
    images->height = dims[1];
    images->width = dims[2];
    images->pixels = images->file.data + MAGIC_BYTES + RANK * DIM_BYTES;
    return MAMBA_OK;
}

mamba_status mamba_idx_labels_check(struct idx_labels *labels, const char *path, mamba_error *error)
{
    enum { RANK = 1 };
    uint32_t dims[RANK] = {0};
    mamba_status status = check_idx(&labels->file, dims, RANK, path, error);
    if (status != MAMBA_OK)
        return status;
    labels->n = dims[0];
    labels->labels = labels->file.data + MAGIC_BYTES + RANK * DIM_BYTES;
    return MAMBA_OK;
}

mamba_status mamba_raw_image_check(struct raw_image *image, size_t height, size_t width,
                                   const char *path, mamba_error *error)
{
    const size_t n = height * width, bytes = n * sizeof(float);
    if (image->file.size != bytes)
        return mamba_fail(error, MAMBA_ERR_INPUT, path,
                          "file size: got %zu bytes, expected %zu (%zu x %zu float32)",
                          image->file.size, bytes, height, width);
    mamba_status status = mamba_file_rest(&image->file, path, error);
    if (status != MAMBA_OK)
        return status;
    const float *pixels = (const float *)(const void *)image->file.data;
    for (size_t i = 0; i < n; i++) {
        if (!mamba_is_finite(pixels[i]) || pixels[i] < 0.0f || pixels[i] > 1.0f)
            return mamba_fail(error, MAMBA_ERR_INPUT, path,
                              "pixel %zu: got %g, expected a number in 0..1", i, (double)pixels[i]);
    }
    image->pixels = pixels;
    return MAMBA_OK;
}

mamba_status mamba_idx_images_open(struct idx_images *out, const char *path,
                                   enum file_access access, mamba_error *error)
{
    *out = (struct idx_images){0};
    mamba_status status = mamba_file_open(&out->file, path, access, error);
    return status == MAMBA_OK ? mamba_idx_images_check(out, path, error) : status;
}

mamba_status mamba_idx_labels_open(struct idx_labels *out, const char *path,
                                   enum file_access access, mamba_error *error)
{
    *out = (struct idx_labels){0};
    mamba_status status = mamba_file_open(&out->file, path, access, error);
    return status == MAMBA_OK ? mamba_idx_labels_check(out, path, error) : status;
}

mamba_status mamba_raw_image_open(struct raw_image *out, const char *path, size_t height,
                                  size_t width, enum file_access access, mamba_error *error)
{
    *out = (struct raw_image){0};
    mamba_status status = mamba_file_open(&out->file, path, access, error);
    return status == MAMBA_OK ? mamba_raw_image_check(out, height, width, path, error) : status;
}
