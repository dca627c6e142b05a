/* The calls of the operating system that the library and its command share: POSIX's, and those of
 * Windows. Paths are the system's bytes on POSIX and UTF-8 on Windows. A call that fails sets
 * errno.
 *
 * The includer defines _POSIX_C_SOURCE 200809L and _FILE_OFFSET_BITS 64 at its beginning. */
#ifndef MAMBA_ENGINE_SYSTEM_H
#define MAMBA_ENGINE_SYSTEM_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

struct file_status {
    uint64_t size;
    bool is_regular, is_device; /* a device that reads characters, such as a terminal */
};

#if !defined(_WIN32)
#include <sys/mman.h>
#include <unistd.h>

/* Returns a descriptor, or -1. O_NONBLOCK: a FIFO is opened, not waited for. */
static inline int system_open(const char *path)
{
    return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

static inline bool system_exists(const char *path)
{
    struct stat found;
    return stat(path, &found) == 0;
}

static inline bool system_status(int fd, struct file_status *out)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return false;
    *out = (struct file_status){(uint64_t)status.st_size, S_ISREG(status.st_mode),
                                S_ISCHR(status.st_mode)};
    return true;
}

/* Returns the number of bytes read, 0 at the end, or -1. */
static inline ptrdiff_t system_read(int fd, void *data, size_t wanted)
{
    return read(fd, data, wanted);
}

static inline void system_close(int fd)
{
    close(fd);
}

/* Returns the whole file as read-only memory, or NULL. */
static inline const void *system_map(int fd, size_t size)
{
    void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    return data == MAP_FAILED ? NULL : data;
}

static inline void system_unmap(const void *data, size_t size)
{
    munmap((void *)(uintptr_t)data, size);
}

#else
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <io.h>
#include <limits.h>
#include <windows.h>

enum { WIDE_PATH = 4096 }; /* characters, with the 0 at its end */

static inline bool wide_path(wchar_t out[WIDE_PATH], const char *path)
{
    const int n = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, out, WIDE_PATH);
    errno = GetLastError() == ERROR_INSUFFICIENT_BUFFER ? ENAMETOOLONG : EILSEQ;
    return n > 0;
}

static inline int system_open(const char *path)
{
    wchar_t wide[WIDE_PATH];
    return wide_path(wide, path) ? _wopen(wide, _O_RDONLY | _O_BINARY | _O_NOINHERIT) : -1;
}

static inline bool system_exists(const char *path)
{
    wchar_t wide[WIDE_PATH];
    return wide_path(wide, path) && GetFileAttributesW(wide) != INVALID_FILE_ATTRIBUTES;
}

static inline bool system_status(int fd, struct file_status *out)
{
    struct _stat64 status;
    if (_fstat64(fd, &status) != 0)
        return false;
    const int type = status.st_mode & _S_IFMT;
    *out = (struct file_status){(uint64_t)status.st_size, type == _S_IFREG, type == _S_IFCHR};
    return true;
}

static inline ptrdiff_t system_read(int fd, void *data, size_t wanted)
{
    return _read(fd, data, wanted < INT_MAX ? (unsigned)wanted : INT_MAX);
}

static inline void system_close(int fd)
{
    _close(fd);
}

static inline const void *system_map(int fd, size_t size)
{
    const HANDLE file = (HANDLE)_get_osfhandle(fd);
    const HANDLE mapping = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
    const void *data = mapping ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, size) : NULL;
    if (mapping)
        CloseHandle(mapping); /* the view keeps it open */
    errno = GetLastError() == ERROR_NOT_ENOUGH_MEMORY ? ENOMEM : EIO;
    return data;
}

static inline void system_unmap(const void *data, size_t size)
{
    (void)size;
    UnmapViewOfFile(data);
}

#endif
#endif
