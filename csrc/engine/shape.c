#include "shape.h"

size_t mamba_stem_convs(const struct mamba_info *info, struct stem_conv convs[MAX_STEM_CONVS])
{
    size_t n = 0;
    uint32_t channels = info->channels;
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
