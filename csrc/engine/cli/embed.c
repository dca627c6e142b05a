/* Prints a model file as a C array, for programs that carry their model with them. */
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "error.h"

/* Makes `name` an identifier of C: other characters become _. */
static void make_identifier(char *name)
{
    for (size_t i = 0; i == 0 || name[i]; i++) {
        const char letter = name[i] | ('a' - 'A');
        if (!(letter >= 'a' && letter <= 'z') && !(i > 0 && name[i] >= '0' && name[i] <= '9'))
            name[i] = '_';
    }
}

mamba_status command_embed(const struct job *job, mamba_error *error)
{
    const char *path = job->options->positional[0], *wanted = job->options->name;
    const char *slash = strrchr(path, '/');
    char name[64] = "";
    strncat(name, wanted ? wanted : slash ? slash + 1 : path, sizeof name - 1);
    if (!wanted)
        name[strcspn(name, ".")] = '\0';
    make_identifier(name);
    if (wanted && strcmp(name, wanted) != 0)
        return mamba_fail(error, MAMBA_ERR_ARGUMENT, NULL,
                          "--name: got '%.64s', expected a name of C of at most 63 letters",
                          wanted);
    const uint64_t bytes = mamba_model_info(job->model)->file_bytes;
    struct file_bytes file;
    mamba_status status = mamba_file_open(&file, path, job->options->access, error);
    if (status == MAMBA_OK)
        status = mamba_file_rest(&file, bytes, path, error);
    if (status == MAMBA_OK && file.size != bytes)
        status = mamba_fail(error, MAMBA_ERR_MODEL, path, "changed while it was read");
    if (status == MAMBA_OK) {
        /* As in the file, tensors begin at multiples of 64 bytes: vectors cross no cache line. */
        printf("#include <stdalign.h>\nalignas(64) static const unsigned char %s[] = {", name);
        for (size_t i = 0; i < bytes; i++)
            printf(i % 20 ? "%d," : "\n%d,", file.data[i]);
        puts("\n};");
    }
    mamba_file_close(&file);
    return status;
}
