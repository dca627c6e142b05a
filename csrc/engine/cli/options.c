#include "options.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "threads.h"

enum { MAX_BATCH = 65536, MAX_ROUNDS = 1000 };
enum { DEFAULT_BATCH = 1, DEFAULT_ROUNDS = 5 };

static mamba_status parse_count(int *out, const char *option, const char *text, int max,
                                mamba_error *error)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < 1 || value > max)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "%s: got '%.60s', expected 1..%d",
                          option, text, max);
    *out = (int)value;
    return MAMBA_OK;
}

/* Parses an option with a value, which is NULL at the end of the command line. */
static mamba_status parse_valued(struct options *out, const char *option, const char *value,
                                 const struct syntax *syntax, mamba_error *error)
{
    static const struct {
        char name[14]; /* an array, as in kernels.h */
        uint8_t flag;
        uint8_t field; /* its place in struct options */
        int max;       /* of a count; 0 if the value is text */
    } known[] = {
        {"--logits", ALLOW_LOGITS, offsetof(struct options, logits), 0},
        {"--asked", ALLOW_LOGITS, offsetof(struct options, asked), 0},
        {"--exit-margin", ALLOW_MARGIN, offsetof(struct options, exit_margin), 0},
        {"--name", ALLOW_NAME, offsetof(struct options, name), 0},
        {"--threads", ALLOW_THREADS, offsetof(struct options, threads), MAX_THREADS},
        {"--batch", ALLOW_BATCH, offsetof(struct options, batch), MAX_BATCH},
        {"--rounds", ALLOW_ROUNDS, offsetof(struct options, rounds), MAX_ROUNDS},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(option, known[i].name) != 0)
            continue;
        if (!(syntax->allowed & known[i].flag))
            return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "%s: not an option here", option);
        if (!value)
            return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "%s: expected a value after it",
                              option);
        void *field = (char *)out + known[i].field;
        if (known[i].max)
            return parse_count(field, option, value, known[i].max, error);
        memcpy(field, &value, sizeof value);
        return MAMBA_OK;
    }
    return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                      "unknown option '%.60s' (a file of that name is ./%.60s)", option, option);
}

mamba_status parse_options(struct options *out, int count, char *const *arguments,
                           const struct syntax *syntax, mamba_error *error)
{
    int n_files = 0, n_stdin = 0;
    *out = (struct options){.batch = DEFAULT_BATCH, .rounds = DEFAULT_ROUNDS};
    for (int i = 0; i < count; i++) {
        const char *argument = arguments[i];
        if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
            out->help = true;
            return MAMBA_OK;
        }
        if (strcmp(argument, "--json") == 0 && !(syntax->allowed & ALLOW_NAME)) {
            out->json = true;
        } else if (strcmp(argument, "--show") == 0 && syntax->allowed & ALLOW_SHOW) {
            out->show = true;
        } else if (strcmp(argument, "--no-mmap") == 0) {
            out->access = FILE_COPIED;
        } else if (argument[0] == '-' && argument[1]) {
            const char *value = i + 1 < count ? arguments[++i] : NULL;
            mamba_status status = parse_valued(out, argument, value, syntax, error);
            if (status != MAMBA_OK)
                return status;
        } else {
            if (n_files < syntax->max_files)
                out->positional[n_files] = argument;
            n_files++;
            n_stdin += argument[0] == '-';
        }
    }
    if (n_files < syntax->min_files || n_files > syntax->max_files)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL, "files: got %d, expected %d", n_files,
                          n_files < syntax->min_files ? syntax->min_files : syntax->max_files);
    if (out->positional[0][0] == '-' || n_stdin > 1)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "-: stdin can be one file, and not MODEL");
    return MAMBA_OK;
}
