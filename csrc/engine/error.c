#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A long path is cut at its front, to leave room for the message: its end tells files apart. */
enum { PATH_SHOWN = 100 };

static size_t write_path(char *text, size_t size, const char *path)
{
    size_t length = strlen(path);
    const char *tail = length > PATH_SHOWN ? path + length - PATH_SHOWN : path;
    int n = snprintf(text, size, "%s%s: ", tail == path ? "" : "...", tail);
    return n < 0 ? 0 : (size_t)n;
}

mamba_status mamba_fail(mamba_error *error, mamba_status status, const char *path,
                        const char *format, ...)
{
    if (!error)
        return status;
    error->status = status;
    size_t used = path ? write_path(error->message, sizeof error->message, path) : 0;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message + used, sizeof error->message - used, format, arguments);
    va_end(arguments);
    return status;
}
