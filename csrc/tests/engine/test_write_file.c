/* write_file: whole or not at all, durable, through links, never over another kind of file. */
#define _GNU_SOURCE /* AT_EMPTY_PATH */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "cli/commands.h"

enum { OTHER_USER = 65534, OTHER_GROUP = 65533 };

/* fsync, rename, fchown, getentropy and realpath are replaced here: they note what they are called
 * with, fail, or repeat themselves. */
static int fsync_fails, rename_fails, fchown_fails; /* an errno, or 0 */
static struct stat synced;                          /* the file of the last fsync */
static bool synced_before_rename, folder_synced;
static char temporary[256]; /* the last rename's source */
static bool shared_before_fchown;
static unsigned char entropy;
static bool entropy_repeats;
static int replacements; /* of a file by another process, each after its path was resolved */

static bool is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

int fsync(int fd)
{
    struct stat file;
    if (fsync_fails || fstat(fd, &file) != 0) {
        errno = fsync_fails;
        return -1;
    }
    if (S_ISDIR(file.st_mode))
        folder_synced = synced_before_rename;
    synced = file;
    return 0;
}

int rename(const char *from, const char *to)
{
    struct stat file;
    synced_before_rename =
        stat(from, &file) == 0 && is_same_file(&file, &synced) && file.st_size == synced.st_size;
    snprintf(temporary, sizeof temporary, "%s", from);
    errno = rename_fails;
    return rename_fails ? -1 : renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int fchown(int fd, uid_t user, gid_t group)
{
    struct stat file;
    shared_before_fchown = fstat(fd, &file) != 0 || file.st_mode & 077;
    errno = fchown_fails;
    return fchown_fails ? -1 : fchownat(fd, "", user, group, AT_EMPTY_PATH);
}

int getentropy(void *buffer, size_t size)
{
    entropy += !entropy_repeats;
    memset(buffer, entropy, size);
    return 0;
}

char *realpath(const char *path, char *buffer)
{
    char name[40];
    const int fd = open(path, O_PATH);
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(name, buffer, PATH_MAX - 1);
    close(fd);
    if (length < 0)
        return NULL;
    buffer[length] = '\0';
    if (replacements > 0) {
        replacements--;
        close(open("replacement", O_WRONLY | O_CREAT, 0600));
        renameat(AT_FDCWD, "replacement", AT_FDCWD, buffer);
    }
    return buffer;
}

static mamba_status write_text(const char *path, const char *text, mamba_error *error)
{
    memset(&synced, 0, sizeof synced);
    synced_before_rename = folder_synced = false;
    return write_file(path, NULL, text, strlen(text), error);
}

static void put(const char *path, const char *text)
{
    FILE *file = fopen(path, "wb");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0)
        abort();
}

static bool holds(const char *path, const char *text)
{
    char found[64] = "";
    FILE *file = fopen(path, "rb");
    if (!file)
        return false;
    const size_t size = fread(found, 1, sizeof found - 1, file);
    fclose(file);
    return size == strlen(text) && strcmp(found, text) == 0;
}

static bool is_link(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0 && S_ISLNK(status.st_mode);
}

static unsigned mode_of(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? (unsigned)status.st_mode & 07777 : 0;
}

/* Checks that nothing is written to `path`, and that the message names it. */
static void expect_refused(const char *path, const char *reason)
{
    mamba_error error = {MAMBA_OK, ""};
    const mamba_status status = write_text(path, "new", &error);
    CHECK(status == MAMBA_ERR_IO && strncmp(error.message, path, strlen(path)) == 0 &&
              strstr(error.message, reason),
          "%s: status %d, '%s', expected '%s'", path, (int)status, error.message, reason);
    CHECK(!temporary[0] || access(temporary, F_OK) != 0, "%s stays", temporary);
}

static void expect_written(const char *path)
{
    mamba_error error = {MAMBA_OK, ""};
    CHECK(write_text(path, "new", &error) == MAMBA_OK, "%s", error.message);
    CHECK(holds(path, "new"), "%s has another content", path);
    CHECK(synced_before_rename, "%s: not synced before it was renamed", path);
    CHECK(folder_synced, "%s: its folder was not synced after the rename", path);
}

static void test_modes(void)
{
    umask(027);
    expect_written("file");
    CHECK(mode_of("file") == 0640, "a new file has mode %o", mode_of("file"));
    CHECK(umask(022) == 027, "the umask was changed");
    const mode_t modes[] = {0600, 0666, 0755};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (chmod("file", modes[i]) != 0)
            abort();
        expect_written("file");
        CHECK(mode_of("file") == modes[i], "got mode %o, expected %o", mode_of("file"), modes[i]);
    }
    unlink("file");
}

static void test_names(void)
{
    char pid_name[64], first[sizeof temporary], longest[NAME_MAX + 1] = "";
    snprintf(pid_name, sizeof pid_name, "mamba.tmp.%ld", (long)getpid());
    put(pid_name, "of another process");
    expect_written("file");
    strcpy(first, temporary);
    expect_written("file");
    CHECK(strcmp(first, temporary) != 0, "two temporary files are called %s", first);
    CHECK(holds(pid_name, "of another process"), "another process's file was changed");
    entropy_repeats = true;
    strcpy(first, temporary);
    put(first, "of another process");
    mamba_error error = {MAMBA_OK, ""};
    CHECK(write_text("file", "new", &error) == MAMBA_ERR_IO && strstr(error.message, "exists"),
          "a taken name: '%s'", error.message);
    CHECK(holds(first, "of another process"), "another process's file was changed");
    entropy_repeats = false;
    unlink(first);
    unlink(pid_name);
    memset(longest, 'n', NAME_MAX);
    expect_written(longest);
    expect_written(longest);
    unlink(longest);
    unlink("file");
}

static void test_links(void)
{
    if (mkdir("folder", 0777) != 0 || symlink("folder/link", "link") != 0 ||
        symlink("target", "folder/link") != 0)
        abort();
    expect_refused("link", "No such file");
    CHECK(is_link("link") && access("folder/target", F_OK) != 0, "a link to nothing was followed");
    put("folder/target", "old");
    expect_written("link");
    CHECK(is_link("link") && is_link("folder/link") && holds("folder/target", "new"),
          "a link was replaced");
    CHECK(strstr(temporary, "/folder/mamba."), "%s is not next to the links' target", temporary);
    unlink("link"), unlink("folder/link"), unlink("folder/target");
    rmdir("folder");
}

static void test_other_kinds(void)
{
    const char reason[] = "expected a regular file";
    if (mkfifo("fifo", 0666) != 0)
        abort();
    expect_refused("fifo", reason);
    unlink("fifo");
    expect_refused(".", reason);
    expect_refused("/dev/null", reason);
    expect_refused("missing/file", "cannot write: No such file");
    expect_refused("", "No such file");
    put("file", "old");
    expect_refused("file/", "Not a directory");
    for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) {
        fflush(stdout);
        const int kept = dup(fd), file = open("file", O_WRONLY | O_APPEND);
        if (kept < 0 || file < 0 || dup2(file, fd) < 0)
            abort();
        const mamba_status status = write_text("file", "new", NULL);
        dup2(kept, fd);
        close(kept), close(file);
        CHECK(status == MAMBA_ERR_IO && holds("file", "old"), "descriptor %d: status %d", fd,
              (int)status);
    }
    /* A deleted file has the name "file (deleted)" in /proc, which may be another file's. */
    const int deleted = open("file", O_WRONLY);
    char name[40];
    snprintf(name, sizeof name, "/proc/self/fd/%d", deleted);
    if (link("file", "other link") != 0 || unlink("file") != 0)
        abort();
    put("file (deleted)", "another");
    for (int links = 1; links >= 0; links--) {
        if (deleted >= 0 && access(name, F_OK) == 0)
            expect_refused(name, reason);
        CHECK(holds("file (deleted)", "another"), "%d links: another file was replaced", links);
        unlink("other link");
    }
    close(deleted);
    unlink("file (deleted)");
}

/* Other processes can replace the file at any time. If one does so again and again, the file may as
 * well have no name. */
static void test_replacements(void)
{
    put("file", "old");
    replacements = 3;
    expect_written("file");
    CHECK(replacements == 0, "no process replaced the file");
    replacements = 1000;
    expect_refused("file", "expected a regular file");
    replacements = 0;
    unlink("file");
}

/* The second file of a command is not the first one, by any name. */
static void test_written(void)
{
    put("file", "first");
    mamba_error error = {MAMBA_OK, ""};
    if (symlink("file", "link") != 0)
        abort();
    for (int i = 0; i < 3; i++) {
        const char *path = i == 0 ? "file" : i == 1 ? "./file" : "link";
        CHECK(write_file(path, "file", "new", 3, &error) == MAMBA_ERR_IO &&
                  strstr(error.message, "--logits") && holds("file", "first"),
              "%s: '%s'", path, error.message);
    }
    CHECK(write_file("other", "file", "new", 3, &error) == MAMBA_OK && holds("other", "new"),
          "'%s'", error.message);
    unlink("file"), unlink("link"), unlink("other");
}

/* A disk can be full, and each call can fail: the old file stays, and no other. */
static void test_failures(void)
{
    put("file", "old");
    fsync_fails = EIO;
    expect_refused("file", strerror(EIO));
    fsync_fails = 0;
    rename_fails = EACCES;
    expect_refused("file", strerror(EACCES));
    rename_fails = 0;
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0)
        abort();
    const struct rlimit small = {2, limit.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    mamba_error error = {MAMBA_OK, ""};
    const mamba_status status = write_text("file", "new", &error);
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK(status == MAMBA_ERR_IO && strstr(error.message, "file: cannot write: File too large"),
          "status %d, '%s'", (int)status, error.message);
    CHECK(holds("file", "old"), "the old file was changed");
    unlink("file");
}

/* Runs as another user, if this one is root: writes to "file", whose owner that user is, but in
 * whose group it is not. */
static bool write_in_other_group(void)
{
    mamba_error error = {MAMBA_OK, ""};
    if (setgid(OTHER_USER) != 0 || setuid(OTHER_USER) != 0)
        return false;
    return write_text("file", "new", &error) == MAMBA_ERR_IO &&
           strstr(error.message, "cannot keep its owner and group: Operation not permitted");
}

/* A file keeps its owner and group or is not replaced, and nobody else can open it meanwhile. */
static void test_owner(void)
{
    struct stat file;
    put("file", "old");
    if (chmod("file", 0640) != 0)
        abort();
    fchown_fails = EPERM;
    expect_refused("file", "cannot keep its owner and group: Operation not permitted");
    fchown_fails = 0;
    CHECK(holds("file", "old"), "the old file was changed");
    if (geteuid() == 0) {
        if (chown("file", OTHER_USER, OTHER_GROUP) != 0 || chmod(".", 0777) != 0)
            abort();
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0)
            _exit(write_in_other_group() ? 0 : 1);
        int code;
        CHECK(child > 0 && waitpid(child, &code, 0) == child && code == 0 && holds("file", "old"),
              "a file of another group was replaced");
        expect_written("file");
        if (stat("file", &file) != 0)
            abort();
        CHECK(file.st_uid == OTHER_USER && file.st_gid == OTHER_GROUP, "got owner %u and group %u",
              (unsigned)file.st_uid, (unsigned)file.st_gid);
    }
    expect_written("file");
    CHECK(mode_of("file") == 0640, "got mode %o", mode_of("file"));
    CHECK(!shared_before_fchown, "others could open the file before it had its group");
    unlink("file");
}

/* root may write any file, so another user tries it. */
static void test_read_only(void)
{
    put("file", "old");
    if (chmod("file", 0444) != 0 || chmod(".", 0777) != 0)
        abort();
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        mamba_error error = {MAMBA_OK, ""};
        if (geteuid() == 0 && setuid(OTHER_USER) != 0)
            _exit(2);
        const bool refused = write_text("file", "new", &error) == MAMBA_ERR_IO &&
                             strstr(error.message, "Permission denied");
        _exit(refused ? 0 : 1);
    }
    int code;
    CHECK(child > 0 && waitpid(child, &code, 0) == child && code == 0 && holds("file", "old"),
          "a file without permission to write was replaced");
    unlink("file");
}

int main(void)
{
    char folder[] = "/tmp/mamba_write_XXXXXX";
    if (!mkdtemp(folder) || chdir(folder) != 0)
        abort();
    test_modes();
    test_names();
    test_links();
    test_other_kinds();
    test_replacements();
    test_written();
    test_failures();
    test_owner();
    test_read_only();
    CHECK(chdir("/") == 0 && rmdir(folder) == 0, "a file was left behind in %s", folder);
    return check_summary();
}
