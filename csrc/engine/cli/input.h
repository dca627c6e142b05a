/* Files that the command reads apart from the model. */
#ifndef MAMBA_CLI_INPUT_H
#define MAMBA_CLI_INPUT_H

#include <stdbool.h>

#include "file_bytes.h"

enum { MAX_UNPACKED = 1 << 30 }; /* bytes that a gzip file may expand to */
/* Room for a path of PATH_MAX with .gz, so that what is cut off is too long to be opened. */
enum { MAX_PATH = 4096 + sizeof ".gz" };

/* A regular file; or a stream, which is copied: stdin, or what `gzip -dc` makes of a gzip file. */
struct input {
    struct file_bytes file;
    char path[MAX_PATH]; /* for messages */
    bool stream;
    int gzip; /* process that writes the stream, or 0 */
};

/* Opens `path`, or path.gz if only that exists; "-" is stdin. Close it with mamba_input_close,
 * after an error too. */
mamba_status mamba_input_open(struct input *out, const char *path, enum file_access access,
                              mamba_error *error);

/* Reads the rest, and checks that all are `expected` bytes; an error says which ones. */
mamba_status mamba_input_rest(struct input *input, uint64_t expected, const char *which,
                              mamba_error *error);
void mamba_input_close(struct input *input);

#endif
