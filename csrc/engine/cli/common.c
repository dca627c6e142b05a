#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "commands.h"
#include "error.h"

static mamba_status set_exit_margin(mamba_model *model, const char *text, mamba_error *error)
{
    char *end;
    errno = 0;
    const float margin = strtof(text, &end);
    if (errno || end == text || *end || mamba_set_exit_margin(model, margin, NULL) != MAMBA_OK)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "--exit-margin: got '%.60s', expected 0 or 2^-126..1e6", text);
    return MAMBA_OK;
}

mamba_status run_command(command_function command, const struct options *options,
                         mamba_error *error)
{
    mamba_model *model;
    const char *path = options->positional[0];
    const double start = now_seconds();
    mamba_status status = options->access == FILE_COPIED ? mamba_model_read(&model, path, error)
                                                         : mamba_model_open(&model, path, error);
    const struct job job = {options, model, now_seconds() - start};
    if (status == MAMBA_OK && options->exit_margin)
        status = set_exit_margin(model, options->exit_margin, error);
    if (status == MAMBA_OK)
        status = command(&job, error);
    mamba_model_close(model);
    return status;
}

void print_json_text(const char *text)
{
    putchar('"');
    for (; *text; text++)
        printf(*text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
    putchar('"');
}

size_t argmax(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

void count_asked(struct asked *out, const uint8_t *asked, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out->images[asked[i] - 1]++;
        out->sum += asked[i];
    }
    out->n += n;
}

void print_asked(const struct asked *asked, const mamba_model *model, bool json)
{
    const uint32_t members = mamba_model_info(model)->members;
    printf(json ? ",\"members_asked_mean\":%.9g,\"members_asked\":["
                : "members asked: mean %.4f; images that asked 1, 2, ... members: ",
           (double)asked->sum / (double)asked->n);
    for (uint32_t i = 0; i < members; i++)
        printf("%s%zu", i ? (json ? "," : ", ") : "", asked->images[i]);
    printf(json ? "]" : "\n");
}

int choose_threads(int wanted, int otherwise)
{
    if (wanted > 1 && mamba_max_threads() == 1) {
        fprintf(stderr,
                "warning: one thread runs, not %d: OMP_NUM_THREADS, or a build without "
                "`make omp`\n",
                wanted);
        return 1;
    }
    return wanted ? wanted : otherwise;
}
