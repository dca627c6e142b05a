/* The readers of image, label and input files. */
#define _XOPEN_SOURCE 700
#define _FILE_OFFSET_BITS 64

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "cli/idx.h"
#include "cli/netpbm.h"
#include "crc32.h"
#include "tiny_model.h"

enum { IMAGES, LABELS, RAW, PICTURE };

/* Opens, checks and closes a file of one kind. Raw images are 2 x 3. */
static mamba_status open_as(int kind, const char *path, enum file_access access, mamba_error *error)
{
    struct idx idx = {0};
    mamba_status status;
    if (kind == PICTURE) {
        mamba_picture picture;
        uint8_t *copy = NULL;
        status = mamba_input_open(&idx.input, path, access, error);
        if (status == MAMBA_OK && mamba_is_netpbm(&idx.input.file))
            status = mamba_netpbm_read(&picture, &copy, &idx.input, error);
        free(copy);
    } else if (kind == RAW) {
        status = mamba_input_open(&idx.input, path, access, error);
        if (status == MAMBA_OK)
            status = mamba_raw_image_check(&idx.input, 2 * 3, error);
    } else {
        status =
            mamba_idx_open(&idx, path, kind == IMAGES ? IDX_IMAGES : IDX_LABELS, access, error);
    }
    mamba_input_close(&idx.input);
    return status;
}

/* Reads `bytes` as a file of one kind. */
static mamba_status read_with(enum file_access access, int kind, const void *bytes, size_t size,
                              mamba_error *error)
{
    const char *path = tiny_path();
    tiny_write(path, bytes, size);
    mamba_status status = open_as(kind, path, access, error);
    unlink(path);
    return status;
}

/* Reads `bytes` mapped and copied, which must give the same. */
static mamba_status read_as(int kind, const void *bytes, size_t size, mamba_error *error)
{
    mamba_error copied = {MAMBA_OK, ""};
    mamba_status status = read_with(FILE_MAPPED, kind, bytes, size, error);
    CHECK(read_with(FILE_COPIED, kind, bytes, size, &copied) == status,
          "a copy gives another status");
    CHECK(status == MAMBA_OK || strcmp(copied.message, error->message) == 0, "%s, but copied: %s",
          error->message, copied.message);
    return status;
}

static void expect_refused(int kind, const void *bytes, size_t size, const char *field)
{
    mamba_error error = {MAMBA_OK, ""};
    mamba_status status = read_as(kind, bytes, size, &error);
    CHECK(status == MAMBA_ERR_INPUT && strstr(error.message, field),
          "%zu bytes: %d, '%s' not in %s", size, status, field, error.message);
}

static void test_images(void)
{
    const uint8_t good[] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6};
    struct idx images;
    tiny_write(tiny_path(), good, sizeof good);
    CHECK(mamba_idx_open(&images, tiny_path(), IDX_IMAGES, FILE_MAPPED, NULL) == MAMBA_OK,
          "good file refused");
    CHECK(images.n == 2 && images.height == 1 && images.width == 3 && images.channels == 1, "dims");
    CHECK(memcmp(images.data, good + 16, 6) == 0, "pixels");
    mamba_input_close(&images.input);
    unlink(tiny_path());

    for (size_t size = 0; size < sizeof good; size++)
        expect_refused(IMAGES, good, size, "file size");
    uint8_t bad[sizeof good + 1] = {0};
    memcpy(bad, good, sizeof good);
    expect_refused(IMAGES, bad, sizeof bad, "file size"); /* a trailing byte */
    for (size_t i = 0; i < 4; i++) {
        bad[i] ^= 1;
        expect_refused(IMAGES, bad, sizeof good, "magic");
        bad[i] ^= 1;
    }
    bad[0] = 0x1F;
    bad[1] = 0x8B;
    expect_refused(IMAGES, bad, sizeof good, "damaged gzip");
    for (size_t dim = 0; dim < 3; dim++) {
        char message[40];
        snprintf(message, sizeof message, "IDX dim %zu: got 0", dim);
        memcpy(bad, good, sizeof good);
        memset(bad + 4 + 4 * dim, 0, 4);
        expect_refused(IMAGES, bad, sizeof good, message);
        memset(bad + 4 + 4 * dim, 0xFF, 4);
        snprintf(message, sizeof message, "IDX dim %zu: got 4294967295", dim);
        expect_refused(IMAGES, bad, sizeof good, dim ? message : "file size");
    }
    /* 2^96 pixels: the product must not wrap around to the size of the file. */
    memset(bad + 4, 0xFF, 12);
    expect_refused(IMAGES, bad, sizeof good, "IDX dim 1: got 4294967295");
}

/* Images of several channels: rank 4. */
static void test_colours(void)
{
    const uint8_t good[] = {0, 0, 8, 4, 0, 0, 0, 1, 0, 0, 0, 2, 0,
                            0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6};
    struct idx images;
    tiny_write(tiny_path(), good, sizeof good);
    CHECK(mamba_idx_open(&images, tiny_path(), IDX_IMAGES, FILE_MAPPED, NULL) == MAMBA_OK,
          "good file refused");
    CHECK(images.n == 1 && images.height == 2 && images.width == 1 && images.channels == 3, "dims");
    CHECK(memcmp(images.data, good + 20, 6) == 0, "pixels");
    mamba_input_close(&images.input);
    unlink(tiny_path());

    for (size_t size = 0; size < sizeof good; size++)
        expect_refused(IMAGES, good, size, "file size");
    expect_refused(LABELS, good, sizeof good, "magic");
    uint8_t bad[sizeof good];
    for (size_t dim = 0; dim < 4; dim++) {
        char message[40];
        snprintf(message, sizeof message, "IDX dim %zu: got 0", dim);
        memcpy(bad, good, sizeof good);
        memset(bad + 4 + 4 * dim, 0, 4);
        expect_refused(IMAGES, bad, sizeof good, message);
    }
    memcpy(bad, good, sizeof good);
    bad[19] = 5;
    expect_refused(IMAGES, bad, sizeof good, "IDX dim 3: got 5, expected 1..4");
    /* The largest dims: their product must not wrap around. */
    const uint8_t largest[] = {0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0, 0, 4};
    memcpy(bad + 4, largest, sizeof largest);
    expect_refused(IMAGES, bad, sizeof good,
                   "file size: got 26 bytes, expected 288230376084602900");
}

/* The longest sides, and one pixel more. */
static void test_sides(void)
{
    static uint8_t image[16 + IDX_MAX_SIDE + 1];
    for (size_t dim = 1; dim < 3; dim++) {
        const uint8_t head[16] = {0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1};
        mamba_error error = {MAMBA_OK, ""};
        char message[60];
        memcpy(image, head, sizeof head);
        image[4 + 4 * dim + 2] = IDX_MAX_SIDE >> 8;
        image[4 + 4 * dim + 3] = 0;
        CHECK(read_as(IMAGES, image, sizeof image - 1, &error) == MAMBA_OK, "%s", error.message);
        image[4 + 4 * dim + 3] = 1;
        snprintf(message, sizeof message, "IDX dim %zu: got 4097, expected 1..4096", dim);
        expect_refused(IMAGES, image, sizeof image, message);
    }
}

static void test_labels(void)
{
    const uint8_t good[] = {0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9};
    struct idx labels;
    tiny_write(tiny_path(), good, sizeof good);
    CHECK(mamba_idx_open(&labels, tiny_path(), IDX_LABELS, FILE_MAPPED, NULL) == MAMBA_OK,
          "good file refused");
    CHECK(labels.n == 3 && labels.data[0] == 7 && labels.data[2] == 9, "labels");
    mamba_input_close(&labels.input);
    unlink(tiny_path());

    for (size_t size = 0; size < sizeof good; size++)
        expect_refused(LABELS, good, size, "file size");
    uint8_t bad[sizeof good + 1] = {0};
    memcpy(bad, good, sizeof good);
    expect_refused(LABELS, bad, sizeof bad, "file size");
    bad[3] = 3;
    expect_refused(LABELS, bad, sizeof bad, "magic"); /* images */
    bad[2] = 0x0D;
    bad[3] = 1;
    expect_refused(LABELS, bad, sizeof good, "magic"); /* floats */
    memcpy(bad, good, sizeof good);
    memset(bad + 4, 0, 4);
    expect_refused(LABELS, bad, 8, "dim"); /* no labels at all */
}

static void test_raw(void)
{
    float pixels[7] = {0.0f, 1.0f, 0.5f, 0.25f, -0.0f, 1e-40f, 0.0f};
    mamba_error error;
    CHECK(read_as(RAW, pixels, 24, &error) == MAMBA_OK, "%s", error.message);
    for (size_t size = 0; size <= sizeof pixels; size++) {
        if (size != 24)
            expect_refused(RAW, pixels, size, "file size");
    }
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY, -1e-6f, 1.000001f, 255.0f};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pixels[3] = bad[i];
        expect_refused(RAW, pixels, 24, "pixel 3");
    }
}

/* Huge files are refused before a copy begins. */
static void test_large_copies(void)
{
    const uint8_t heads[][16] = {[IMAGES] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3},
                                 [LABELS] = {0, 0, 8, 1, 0, 0, 0, 3},
                                 [RAW] = {0}};
    for (int kind = IMAGES; kind <= RAW; kind++) {
        const char *path = tiny_path();
        mamba_error error = {MAMBA_OK, ""};
        tiny_write(path, heads[kind], sizeof heads[kind]);
        if (truncate(path, sizeof(size_t) > 4 ? (off_t)1 << 40 : (off_t)1 << 30) == 0) {
            open_as(kind, path, FILE_COPIED, &error);
            CHECK(error.status == MAMBA_ERR_INPUT && strstr(error.message, "file size"),
                  "kind %d: %s", kind, error.message);
        }
        unlink(path);
    }
}

/* ---- streams ------------------------------------------------------------------------------- */

static const uint8_t IMAGE_FILE[] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0,
                                     1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6};
static const uint8_t LABEL_FILE[] = {0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9};
static const float RAW_FILE[6] = {0.0f, 1.0f, 0.5f, 0.25f, 0.0f, 0.0f};

static const struct {
    const void *bytes;
    size_t size;
} GOOD[] = {[IMAGES] = {IMAGE_FILE, sizeof IMAGE_FILE},
            [LABELS] = {LABEL_FILE, sizeof LABEL_FILE},
            [RAW] = {RAW_FILE, sizeof RAW_FILE}};

/* Appends `bytes` as one gzip member of one stored block (RFC 1952, RFC 1951); returns the size. */
static size_t gzip_member(uint8_t *out, const void *bytes, size_t size)
{
    const uint8_t head[] = {0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255, 1};
    const uint32_t tail[] = {mamba_crc32(bytes, size), (uint32_t)size};
    const unsigned length = (unsigned)size | (~(unsigned)size & 0xFFFFu) << 16;
    uint8_t *p = out;
    memcpy(p, head, sizeof head);
    p += sizeof head;
    for (int i = 0; i < 4; i++)
        *p++ = (uint8_t)(length >> 8 * i);
    memcpy(p, bytes, size);
    p += size;
    for (int i = 0; i < 8; i++)
        *p++ = (uint8_t)(tail[i / 4] >> 8 * (i % 4));
    return (size_t)(p - out);
}

/* Opens a file of one kind as stdin: through a pipe, or redirected. */
static mamba_status from_stdin(int kind, const void *bytes, size_t size, bool redirected,
                               mamba_error *error)
{
    int ends[2];
    const int kept = dup(STDIN_FILENO);
    if (kept < 0 || pipe(ends) != 0)
        abort();
    if (redirected) {
        close(ends[0]);
        tiny_write(tiny_path(), bytes, size);
        ends[0] = open(tiny_path(), O_RDONLY);
        unlink(tiny_path());
    } else if (size && write(ends[1], bytes, size) != (ssize_t)size) {
        abort();
    }
    close(ends[1]);
    dup2(ends[0], STDIN_FILENO);
    close(ends[0]);
    const mamba_status status = open_as(kind, "-", FILE_MAPPED, error);
    dup2(kept, STDIN_FILENO);
    close(kept);
    return status;
}

/* Every length of stdin: none, cut off, whole, with another byte, and much more. */
static void test_stdin(void)
{
    for (int kind = IMAGES; kind <= RAW; kind++)
        for (int redirected = 0; redirected < 2; redirected++)
            for (size_t size = 0; size <= GOOD[kind].size + 1; size++) {
                uint8_t bytes[1000] = {0};
                mamba_error error = {MAMBA_OK, ""};
                memcpy(bytes, GOOD[kind].bytes, GOOD[kind].size);
                const size_t sent = size > GOOD[kind].size ? sizeof bytes : size;
                const mamba_status status = from_stdin(kind, bytes, sent, redirected, &error);
                if (size == GOOD[kind].size)
                    CHECK(status == MAMBA_OK, "kind %d: %s", kind, error.message);
                else
                    CHECK(status == MAMBA_ERR_INPUT &&
                              strstr(error.message, "stdin: file size: got"),
                          "kind %d, %zu bytes: %d, %s", kind, sent, (int)status, error.message);
                if (sent > GOOD[kind].size)
                    CHECK(strstr(error.message, "got at least "), "%s", error.message);
            }
    const uint8_t packed[] = {0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255, 1, 0, 0, 255, 255, 0, 0};
    mamba_error error = {MAMBA_OK, ""};
    CHECK(from_stdin(IMAGES, packed, sizeof packed, false, &error) == MAMBA_ERR_INPUT &&
              strstr(error.message, "this is gzip: unpack it"),
          "%s", error.message);
}

/* A picture is read or refused alike, whichever way its bytes come, with comments of any length:
 * its header may have as many bytes as are read of a stream at first. */
static void test_pictures(void)
{
    const char *headers[] = {"P5%c# %*s%c2 3 15\n", "P6%c# %*s%c2 1 # and another\n255\n"};
    for (size_t kind = 0; kind < 2; kind++)
        for (int spaces = 0; spaces < 300; spaces += spaces < 180 ? 60 : 1) {
            char file[400];
            uint8_t packed[500];
            const char end = spaces % 2 ? '\n' : '\r';
            const int head = snprintf(file, sizeof file, headers[kind], end, spaces, "", end);
            const size_t size = (size_t)head + 6;
            memcpy(file + head, "\1\2\3\4\5\6", 7);
            for (size_t sent = size - 1; sent <= size + 1; sent++) {
                mamba_error errors[4] = {{MAMBA_OK, ""}};
                read_as(PICTURE, file, sent, &errors[0]);
                from_stdin(PICTURE, file, sent, false, &errors[1]);
                from_stdin(PICTURE, file, sent, true, &errors[2]);
                read_with(FILE_MAPPED, PICTURE, packed, gzip_member(packed, file, sent),
                          &errors[3]);
                const char *words = head > STREAM_HEAD_BYTES ? "in the first 256 bytes"
                                    : sent == size           ? ""
                                                             : "(by its header)";
                for (size_t i = 0; i < 4; i++)
                    CHECK(errors[i].status == (*words ? MAMBA_ERR_INPUT : MAMBA_OK) &&
                              strstr(errors[i].message, words),
                          "way %zu, a header of %d bytes, then %zu: %s", i, head,
                          sent - (size_t)head, errors[i].message);
            }
        }
}

/* A terminal is refused, instead of waiting for someone to type an image. */
static void test_terminal(void)
{
    const int master = posix_openpt(O_RDWR | O_NOCTTY), kept = dup(STDIN_FILENO);
    const char *name =
        master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0 ? ptsname(master) : NULL;
    const int terminal = name ? open(name, O_RDWR | O_NOCTTY) : -1;
    if (terminal < 0) {
        printf("not tested here: no terminal can be opened\n");
        return;
    }
    mamba_error error = {MAMBA_OK, ""};
    dup2(terminal, STDIN_FILENO);
    CHECK(open_as(RAW, "-", FILE_MAPPED, &error) == MAMBA_ERR_IO &&
              strstr(error.message, "stdin: got a terminal or device, expected"),
          "%s", error.message);
    dup2(kept, STDIN_FILENO);
    close(kept), close(terminal), close(master);
}

/* A gzip file gives what is in it; each cut, each changed byte and each byte more is noticed. */
static void test_gzip(void)
{
    for (int kind = IMAGES; kind <= RAW; kind++) {
        uint8_t packed[200];
        mamba_error error = {MAMBA_OK, ""};
        const size_t size = gzip_member(packed, GOOD[kind].bytes, GOOD[kind].size);
        CHECK(read_as(kind, packed, size, &error) == MAMBA_OK, "%s", error.message);
        for (size_t cut = 2; cut < size; cut++)
            expect_refused(kind, packed, cut, "damaged gzip");
        packed[size] = 7;
        expect_refused(kind, packed, size + 1, "damaged gzip");
        packed[20] ^= 1; /* within the data, which the checksum covers */
        expect_refused(kind, packed, size, "");
        packed[20] ^= 1;
        packed[size - 8] ^= 1; /* the checksum */
        expect_refused(kind, packed, size, "damaged gzip");

        /* Two members are one file. */
        size_t both = gzip_member(packed, GOOD[kind].bytes, 5);
        both +=
            gzip_member(packed + both, (const uint8_t *)GOOD[kind].bytes + 5, GOOD[kind].size - 5);
        CHECK(read_as(kind, packed, both, &error) == MAMBA_OK, "two members: %s", error.message);
        const size_t first = gzip_member(packed, GOOD[kind].bytes, GOOD[kind].size);
        gzip_member(packed + first, "x", 1);
        expect_refused(kind, packed, first + gzip_member(packed + first, "x", 1), "got at least ");
    }
}

/* A gzip file may have 1 GiB, header included. More is refused before it is unpacked. */
static void test_gzip_ceiling(void)
{
    const struct {
        uint8_t dims[12];
        const char *words;
    } cases[] = {
        /* 2^30 - 16 pixels: too few bytes follow */
        {{0x03, 0xFF, 0xFF, 0xFF, 0, 0, 0, 4, 0, 0, 0, 4}, "got 18 bytes, expected 1073741824 ("},
        {{0x04, 0x00, 0x00, 0x00, 0, 0, 0, 4, 0, 0, 0, 4}, "got 1073741840 bytes in gzip"},
        {{0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 16, 0, 0, 0, 16, 0},
         "bytes in gzip, expected up to 1073741824"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t file[300] = {0, 0, 8, 3}, packed[400];
        memcpy(file + 4, cases[i].dims, 12);
        const size_t size = i == 0 ? 18 : sizeof file; /* short, or longer than the head */
        expect_refused(IMAGES, packed, gzip_member(packed, file, size), cases[i].words);
    }
}

/* `x` is found as x.gz, unless `x` is there. A message names the file that was read. */
static void test_names(void)
{
    uint8_t packed[200];
    char name[300];
    mamba_error error = {MAMBA_OK, ""};
    snprintf(name, sizeof name, "%s.gz", tiny_path());
    tiny_write(name, packed, gzip_member(packed, LABEL_FILE, sizeof LABEL_FILE));
    CHECK(open_as(LABELS, tiny_path(), FILE_MAPPED, &error) == MAMBA_OK, "%s", error.message);
    CHECK(open_as(IMAGES, tiny_path(), FILE_MAPPED, &error) == MAMBA_ERR_INPUT, "labels as images");
    CHECK(strstr(error.message, ".gz: file size: got 11"), "%s", error.message);
    tiny_write(tiny_path(), "text", 4);
    CHECK(open_as(LABELS, tiny_path(), FILE_MAPPED, &error) == MAMBA_ERR_INPUT, "x is passed over");
    unlink(tiny_path());
    tiny_write(name, LABEL_FILE, sizeof LABEL_FILE); /* the bytes decide, not the name */
    CHECK(open_as(LABELS, tiny_path(), FILE_COPIED, &error) == MAMBA_OK, "%s", error.message);
    unlink(name);
    CHECK(open_as(LABELS, tiny_path(), FILE_MAPPED, &error) == MAMBA_ERR_IO &&
              !strstr(error.message, ".gz"),
          "%s", error.message);
}

/* No process and no descriptor is left, however a gzip file ends. */
static void test_nothing_is_left(void)
{
    uint8_t file[70000] = {0}, packed[71000]; /* more than a pipe holds */
    mamba_error error;
    memcpy(file, IMAGE_FILE, 16);
    const int before = tiny_open_descriptors();
    expect_refused(IMAGES, packed, gzip_member(packed, file, 65000), "got at least ");
    file[2] = 9;
    expect_refused(IMAGES, packed, gzip_member(packed, file, 65000), "magic");
    const size_t size = gzip_member(packed, IMAGE_FILE, sizeof IMAGE_FILE);
    signal(SIGCHLD, SIG_IGN); /* as a parent can pass it on; exit codes would be lost */
    tiny_write(tiny_path(), packed, size);
    CHECK(open_as(IMAGES, tiny_path(), FILE_MAPPED, &error) == MAMBA_OK, "%s", error.message);
    unlink(tiny_path());
    CHECK(tiny_open_descriptors() == before, "a descriptor stayed open");
    CHECK(waitpid(-1, NULL, WNOHANG) < 0, "a process was left");
}

static void test_not_files(void)
{
    CHECK(open_as(IMAGES, "/dev/null", FILE_MAPPED, NULL) == MAMBA_ERR_IO, "a device");
    CHECK(open_as(IMAGES, "/nonexistent", FILE_COPIED, NULL) == MAMBA_ERR_IO, "missing");
    CHECK(open_as(RAW, "/tmp", FILE_COPIED, NULL) == MAMBA_ERR_IO, "a folder");
}

int main(void)
{
    test_images();
    test_colours();
    test_sides();
    test_labels();
    test_raw();
    test_large_copies();
    test_stdin();
    test_pictures();
    test_terminal();
    test_gzip();
    test_gzip_ceiling();
    test_names();
    test_nothing_is_left();
    test_not_files();
    return check_summary();
}
