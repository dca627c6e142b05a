/* Prints a model file as a C array, for programs that carry their model with them. */
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "error.h"

/* C11's, one after the other. */
static const char KEYWORDS[] =
    "auto\0break\0case\0char\0const\0continue\0default\0do\0double\0else\0enum\0extern\0float\0"
    "for\0goto\0if\0inline\0int\0long\0register\0restrict\0return\0short\0signed\0sizeof\0static\0"
    "struct\0switch\0typedef\0union\0unsigned\0void\0volatile\0while\0";

/* Makes `name` an identifier of C: other characters, and the first one of a keyword, become _. */
static void make_identifier(char *name)
{
    for (const char *word = KEYWORDS; *word; word += strlen(word) + 1)
        if (strcmp(name, word) == 0)
            name[0] = '_';
    for (size_t i = 0; i == 0 || name[i]; i++) {
        const char letter = name[i] | ('a' - 'A');
        if (!(letter >= 'a' && letter <= 'z') && !(i > 0 && name[i] >= '0' && name[i] <= '9'))
            name[i] = '_';
    }
}

mamba_status command_embed(const struct job *job, mamba_error *error)
{
    const char *path = job->options->positional[0], *wanted = job->options->name;
    char name[64] = ""; /* all zeros: make_identifier also reads the byte after an empty name */
    snprintf(name, sizeof name, "%s", wanted ? wanted : file_name(path));
    if (!wanted)
        name[strcspn(name, ".")] = '\0';
    make_identifier(name);
    if (wanted && strcmp(name, wanted) != 0)
        return mamba_fail(
            error, MAMBA_ERR_ARGUMENT, NULL,
            "--name: got '%.64s', expected a name of C, not a keyword, of at most 63 letters",
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
