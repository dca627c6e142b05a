#include "shape.h"

#include "copy.h"

size_t mamba_stem_convs(const struct mamba_info *info, struct stem_conv convs[MAX_STEM_CONVS])
{
    size_t n = 0;
    uint32_t channels = 1;
    if (info->stem == STEM_PATCH)
        return 0;
    if (info->stem == STEM_CONV3) {
        convs[n++] = (struct stem_conv){channels, (info->stem_width + 1) / 2, 1};
        channels = convs[0].out;
    }
    convs[n++] = (struct stem_conv){channels, info->stem_width, 2};
    convs[n++] = (struct stem_conv){info->stem_width, info->d_model, 2};
    return n;
}

/* Floats that mamba_copy_rows may read and write after a row. */
enum { OVERRUN = COPY_STEP - 1 };

size_t mamba_feature_map_floats(uint64_t height, uint64_t width, uint64_t channels)
{
    return (size_t)mamba_pad((height + 2) * (width + 2) * channels + OVERRUN);
}

size_t mamba_im2col_stride(uint64_t inputs)
{
    return (size_t)mamba_pad(inputs + OVERRUN);
}
