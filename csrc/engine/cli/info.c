#include <inttypes.h>
#include <stdio.h>

#include "commands.h"

static void print_numbers(const mamba_info *info, const char *number_format)
{
    /* Arrays, not pointers: those need relocations, which make ./mamba larger. */
    static const char names[][13] = {
        "version",     "height",     "width",   "channels", "n_classes",  "patch_height",
        "patch_width", "stem_width", "d_model", "n_layers", "d_state",    "d_conv",
        "d_inner",     "dt_rank",    "members", "length",   "parameters", "file_bytes"};
    const uint64_t values[] = {
        info->version,      info->height,      info->width,      info->channels, info->n_classes,
        info->patch_height, info->patch_width, info->stem_width, info->d_model,  info->n_layers,
        info->d_state,      info->d_conv,      info->d_inner,    info->dt_rank,  info->members,
        info->length,       info->parameters,  info->file_bytes};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        printf(number_format, names[i], values[i]);
}

mamba_status command_info(const struct job *job, mamba_error *error)
{
    static const char stems[][6] = {"patch", "conv", "conv3"};
    static const char directions[][14] = {"forward", "alternate", "bidirectional", "cross"};
    static const char pools[][5] = {"mean", "last"};
    const mamba_info *info = mamba_model_info(job->model);
    const bool json = job->options->json;
    const char *text = json ? "\"%s\":\"%s\"," : "%-13s %s\n";
    const char *flag = json ? "\"%s\":%s," : "%-13s %s\n";
    const char *real = json ? "\"%s\":%.9g," : "%-13s %.9g\n";
    (void)error;
    printf("%.*s", json, "{");
    print_numbers(info, json ? "\"%s\":%" PRIu64 "," : "%-13s %" PRIu64 "\n");
    printf(text, "stem", stems[info->stem]);
    printf(text, "direction", directions[info->direction]);
    printf(text, "pool", pools[info->pool]);
    printf(flag, "tied_a", info->tied_a ? "true" : "false");
    printf(flag, "pos_embed", info->pos_embed ? "true" : "false");
    printf(flag, "local_conv", info->local_conv ? "true" : "false");
    printf(real, "norm_eps", (double)info->norm_eps);
    printf(real, "pixel_mean", (double)info->pixel_mean);
    printf(real, "pixel_std", (double)info->pixel_std);
    printf(json ? "\"%s\":\"%08" PRIx32 "\"}\n" : "%-13s %08" PRIx32 "\n", "crc32", info->crc32);
    return MAMBA_OK;
}
