/* The parsed command line. */
#ifndef MAMBA_CLI_OPTIONS_H
#define MAMBA_CLI_OPTIONS_H

#include <stdbool.h>

#include "file_bytes.h"

enum { MAX_POSITIONAL = 3 };

struct options {
    const char *positional[MAX_POSITIONAL];
    bool help, json;
    bool show;               /* print the model's input */
    enum file_access access; /* of all files: copied with --no-mmap, else mapped */
    const char *logits;      /* NULL if not given */
    const char *asked;       /* NULL if not given */
    const char *exit_margin; /* NULL if not given */
    const char *name;        /* of embed's array; NULL if not given */
    int threads;             /* 0 if not given */
    int batch, rounds;       /* of bench */
};

/* Options that a command may allow; all allow --no-mmap and --help, and --json unless --name. */
enum {
    ALLOW_LOGITS = 1, /* and --asked */
    ALLOW_THREADS = 2,
    ALLOW_BATCH = 4,
    ALLOW_ROUNDS = 8,
    ALLOW_SHOW = 16,
    ALLOW_MARGIN = 32,
    ALLOW_NAME = 64
};

/* The arguments of a command. */
struct syntax {
    char name[8];    /* "" if no subcommand is named; an array, as in kernels.h */
    char usage[109]; /* its arguments, for the help */
    uint8_t min_files, max_files, allowed;
};

/* Parses arguments [count] of a command. */
mamba_status parse_options(struct options *out, int count, char *const *arguments,
                           const struct syntax *syntax, mamba_error *error);

#endif
