/* Calls of Windows that the command alone needs. */
#include "commands.h"
#include "process.h"

#if defined(_WIN32)
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "system.h"

#include <shellapi.h> /* after windows.h */

/* Returns a new string, or NULL. */
static char *utf8(const wchar_t *wide)
{
    const int bytes = WideCharToMultiByte(CP_UTF8, 0, wide, -1, NULL, 0, NULL, NULL);
    char *text = bytes > 0 ? malloc((size_t)bytes) : NULL;
    if (text)
        WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, bytes, NULL, NULL);
    return text;
}

char **process_start(int *argc, char **argv)
{
    for (int stream = 0; stream < 3; stream++)
        _setmode(stream, _O_BINARY);
    SetConsoleOutputCP(CP_UTF8); /* of class names */
    int n;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &n);
    char **arguments = wide ? calloc((size_t)n + 1, sizeof *arguments) : NULL;
    for (int i = 0; arguments && i < n; i++)
        if (!(arguments[i] = utf8(wide[i])))
            return argv;
    LocalFree(wide);
    if (!arguments)
        return argv;
    *argc = n;
    return arguments;
}

double now_seconds(void)
{
    LARGE_INTEGER now, per_second;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&per_second);
    return (double)now.QuadPart / (double)per_second.QuadPart;
}

const char *file_name(const char *path)
{
    for (const char *c = path; *c; c++)
        if (strchr("/\\:", *c))
            path = c + 1;
    return path;
}

int gzip_start(const char *path, int *process)
{
    (void)path;
    (void)process;
    errno = ENOSYS;
    return -1;
}

enum gzip_end gzip_wait(int process)
{
    (void)process;
    return GZIP_MISSING;
}

#define OTHER_FILE "expected a regular file other than stdout, stderr and --logits"

static bool same_file(HANDLE a, HANDLE b)
{
    BY_HANDLE_FILE_INFORMATION one, two;
    return GetFileInformationByHandle(a, &one) && GetFileInformationByHandle(b, &two) &&
           one.dwVolumeSerialNumber == two.dwVolumeSerialNumber &&
           one.nFileIndexHigh == two.nFileIndexHigh && one.nFileIndexLow == two.nFileIndexLow;
}

/* Sets `target` to the file that `path` names, after all links, and checks that it can be written.
 */
static mamba_status find_target(wchar_t target[WIDE_PATH], const char *path, mamba_error *error)
{
    const int fd =
        wide_path(target, path) ? _wopen(target, _O_WRONLY | _O_BINARY | _O_NOINHERIT) : -1;
    if (fd < 0 && errno == ENOENT)
        return MAMBA_OK;
    if (fd < 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, "cannot write: %s", strerror(errno));
    const HANDLE file = (HANDLE)_get_osfhandle(fd);
    const DWORD length = GetFinalPathNameByHandleW(file, target, WIDE_PATH, 0);
    const bool good = GetFileType(file) == FILE_TYPE_DISK && length > 0 && length < WIDE_PATH &&
                      !same_file(file, GetStdHandle(STD_OUTPUT_HANDLE)) &&
                      !same_file(file, GetStdHandle(STD_ERROR_HANDLE));
    _close(fd);
    return good ? MAMBA_OK : mamba_fail(error, MAMBA_ERR_IO, path, OTHER_FILE);
}

static bool write_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        const int written = _write(fd, data, bytes < INT_MAX ? (unsigned)bytes : INT_MAX);
        if (written <= 0)
            return false;
        data += written;
        bytes -= (size_t)written;
    }
    return _commit(fd) == 0;
}

/* A file that exists keeps its access rights, or is not replaced. MoveFileExW only moves to a name
 * that is free. */
static bool move_over(const wchar_t *target, const wchar_t *temporary)
{
    if (ReplaceFileW(target, temporary, NULL, 0, NULL, NULL) ||
        MoveFileExW(temporary, target, MOVEFILE_WRITE_THROUGH))
        return true;
    errno = EACCES; /* open in another program, most likely */
    return false;
}

mamba_status write_file(const char *path, const char *written, const void *data, size_t bytes,
                        mamba_error *error)
{
    wchar_t target[WIDE_PATH], temporary[WIDE_PATH + 32]; /* first the file `written` */
    if (written && find_target(temporary, written, error) != MAMBA_OK)
        return MAMBA_ERR_IO;
    if (find_target(target, path, error) != MAMBA_OK)
        return MAMBA_ERR_IO;
    if (written && wcscmp(target, temporary) == 0)
        return mamba_fail(error, MAMBA_ERR_IO, path, OTHER_FILE);
    /* A name that is taken is refused, so it need not be random. */
    _snwprintf(temporary, WIDE_PATH + 32, L"%ls.mamba.tmp.%lx", target, GetCurrentProcessId());
    const int fd = _wopen(temporary, _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY | _O_NOINHERIT,
                          _S_IREAD | _S_IWRITE);
    const bool good = fd >= 0 && write_all(fd, data, bytes);
    if (fd >= 0 && _close(fd) == 0 && good && move_over(target, temporary))
        return MAMBA_OK;
    mamba_fail(error, MAMBA_ERR_IO, path, "cannot write: %s", strerror(errno));
    if (fd >= 0)
        _wunlink(temporary);
    return MAMBA_ERR_IO;
}

#endif
