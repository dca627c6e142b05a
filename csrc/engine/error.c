#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A long path is cut at its front, to leave room for the message: its end tells files apart. */
enum { PATH_SHOWN = 100 };

mamba_status mamba_fail(mamba_error *error, mamba_status status, const char *path,
                        const char *format, ...)
{
    if (!error)
        return status;
    error->status = status;
    int used = 0;
    if (path) {
        const size_t length = strlen(path), cut = length > PATH_SHOWN ? length - PATH_SHOWN : 0;
        used =
            snprintf(error->message, sizeof error->message, "%s%s: ", cut ? "..." : "", path + cut);
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message + used, sizeof error->message - (size_t)used, format, arguments);
    va_end(arguments);
    return status;
}
