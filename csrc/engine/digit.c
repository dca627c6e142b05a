/* The preparation `mnist`: finds the digit in a picture of any size, and shows it as MNIST does.
 *
 * The picture is read twice or three times, never copied: averaged into a grid of at most GRID
 * cells a side, in which the paper is fitted and the ink is found; if the ink is small, its
 * surroundings again with finer cells; then the ink's box into the model's pixels. */
#include <string.h>

#include "error.h"
#include "picture.h"

enum { GRID = 96, PAPER_SAMPLES = 150, NOISE_SAMPLES = 576, TERMS = 6 };
enum { FULL_LEVEL = 240 }; /* contrast from here on is not stretched */

static const double MIN_LEVEL = 6; /* less contrast is not ink */

/* Cells of step x step pixels, the last ones smaller. */
struct grid {
    size_t x, y, step;    /* first pixel of the first cell; side of a cell */
    size_t width, height; /* in cells */
    float cells[GRID * GRID];
    uint16_t next[GRID * GRID]; /* the cell that `follow` looks at next */
};

/* Brightness of the paper, a polynomial in x and y from -1 to 1. */
struct paper {
    double terms[TERMS]; /* of 1, x, y, x^2, x y, y^2 */
    double x_scale, y_scale;
    bool is_plain; /* the same everywhere */
    double sign;   /* of the ink: -1 if it is darker than the paper */
};

struct ink {
    double x0, y0, x1, y1; /* box, in pixels */
    double level;          /* typical contrast */
    double noise;          /* standard deviation of a cell of the paper */
    double detail;         /* in pixels: smaller things are lost in the noise */
    size_t step;           /* side of the cells, in pixels */
};

/* ---- grid ----------------------------------------------------------------------------------- */

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static double lesser(double a, double b)
{
    return a < b ? a : b;
}

/* Averages columns x0..x1 and rows y0..y1 of the picture. */
static void read_grid(struct grid *grid, const struct plane *plane, size_t x0, size_t y0, size_t x1,
                      size_t y1)
{
    const size_t longer = x1 - x0 > y1 - y0 ? x1 - x0 : y1 - y0;
    grid->x = x0;
    grid->y = y0;
    grid->step = (longer + GRID - 1) / GRID;
    grid->width = (x1 - x0 + grid->step - 1) / grid->step;
    grid->height = (y1 - y0 + grid->step - 1) / grid->step;
    float *cell = grid->cells;
    for (size_t y = y0; y < y1; y += grid->step)
        for (size_t x = x0; x < x1; x += grid->step) {
            const struct window window = {(double)x, (double)y, (double)smaller(x + grid->step, x1),
                                          (double)smaller(y + grid->step, y1)};
            *cell++ = (float)(grid->step == 1 ? mamba_pixel(plane, x, y)
                                              : mamba_window_mean(plane, &window));
        }
}

/* Averages each cell with its eight neighbours. */
static void blur(struct grid *grid)
{
    const size_t width = grid->width, height = grid->height;
    for (int axis = 0; axis < 2; axis++) {
        const size_t lines = axis ? width : height, n = axis ? height : width;
        const size_t line_stride = axis ? 1 : width, stride = axis ? width : 1;
        for (size_t line = 0; line < lines; line++) {
            float *cell = grid->cells + line * line_stride;
            float before = *cell;
            for (size_t i = 0; i < n; i++, cell += stride) {
                const float after = i + 1 < n ? cell[stride] : *cell, here = *cell;
                *cell = (before + here + after) / 3;
                before = here;
            }
        }
    }
}

/* Returns the k-th smallest of n values, and reorders them (Hoare's selection). */
static float select_smallest(float *values, int n, int k)
{
    int low = 0, high = n - 1;
    while (low < high) {
        const float pivot = values[k];
        int i = low, j = high;
        do {
            while (values[i] < pivot)
                i++;
            while (values[j] > pivot)
                j--;
            if (i <= j) {
                const float swapped = values[i];
                values[i++] = values[j];
                values[j--] = swapped;
            }
        } while (i <= j);
        if (j < k)
            low = i;
        if (k < i)
            high = j;
    }
    return values[k];
}

/* ---- paper ---------------------------------------------------------------------------------- */

struct sample {
    double terms[TERMS];
    float value;
};

static void set_terms(double *terms, const struct paper *paper, double x, double y)
{
    x = x * paper->x_scale - 1;
    y = y * paper->y_scale - 1;
    const double values[TERMS] = {1, x, y, x * x, x * y, y * y};
    memcpy(terms, values, sizeof values);
}

/* Returns the paper's brightness, cut off at black and white as a picture is. */
static double brightness(const struct paper *paper, const double *terms)
{
    double sum = 0;
    for (size_t i = 0; i < TERMS; i++)
        sum += paper->terms[i] * terms[i];
    return larger(0, lesser(sum, 255));
}

static double paper_at(const struct paper *paper, double x, double y)
{
    double terms[TERMS];
    if (paper->is_plain)
        return paper->terms[0];
    set_terms(terms, paper, x, y);
    return brightness(paper, terms);
}

/* Solves a x = b for the symmetric, positive definite a; x replaces b. */
static void solve(double a[TERMS][TERMS], double b[TERMS])
{
    for (size_t k = 0; k < TERMS; k++)
        for (size_t i = k + 1; i < TERMS; i++) {
            const double factor = a[i][k] / a[k][k];
            for (size_t j = k; j < TERMS; j++)
                a[i][j] -= factor * a[k][j];
            b[i] -= factor * b[k];
        }
    for (size_t k = TERMS; k-- > 0;) {
        for (size_t j = k + 1; j < TERMS; j++)
            b[k] -= a[k][j] * b[j];
        b[k] /= a[k][k];
    }
}

/* Fits the paper to the samples that differ from it by less than `limit` now. Returns the change of
 * its brightness, at most. */
static double refit(struct paper *paper, const struct sample *samples, size_t n, double limit)
{
    double a[TERMS][TERMS] = {{0}}, b[TERMS] = {0};
    for (size_t s = 0; s < n; s++) {
        const double *terms = samples[s].terms;
        const double now = brightness(paper, terms), error = samples[s].value - now;
        const bool is_cut_off = error == 0 && (now <= 0 || now >= 255);
        if (error > limit || error < -limit || is_cut_off)
            continue;
        for (size_t i = 0; i < TERMS; i++) {
            b[i] += terms[i] * error;
            for (size_t j = 0; j <= i; j++)
                a[i][j] += terms[i] * terms[j];
        }
    }
    for (size_t i = 0; i < TERMS; i++) {
        a[i][i] += 1e-3 * (double)n; /* a change that the samples do not determine is 0 */
        for (size_t j = i + 1; j < TERMS; j++)
            a[i][j] = a[j][i];
    }
    solve(a, b);
    double change = 0;
    for (size_t i = 0; i < TERMS; i++) {
        paper->terms[i] += b[i];
        change += b[i] < 0 ? -b[i] : b[i];
    }
    return change;
}

/* Returns the error that one in `share` samples stays below: a third is paper, even if most of the
 * picture is ink. */
static double typical_error(const struct paper *paper, const struct sample *samples, size_t n,
                            int share)
{
    float errors[PAPER_SAMPLES];
    for (size_t s = 0; s < n; s++) {
        const double error = samples[s].value - brightness(paper, samples[s].terms);
        errors[s] = (float)(error < 0 ? -error : error);
    }
    return (double)select_smallest(errors, (int)n, (int)n / share);
}

static float median_sample(const struct sample *samples, size_t n)
{
    float values[PAPER_SAMPLES];
    for (size_t s = 0; s < n; s++)
        values[s] = samples[s].value;
    return select_smallest(values, (int)n, (int)n / 2);
}

/* Brightness of the outermost cells: its median; half of them, and 90 %, are as near to that. */
struct border {
    float median, half, most;
};

static struct border look_at_border(const struct grid *grid)
{
    float values[4 * GRID];
    int n = 0;
    for (size_t x = 0; x < grid->width; x++) {
        values[n++] = grid->cells[x];
        values[n++] = grid->cells[(grid->height - 1) * grid->width + x];
    }
    for (size_t y = 0; y < grid->height; y++) {
        values[n++] = grid->cells[y * grid->width];
        values[n++] = grid->cells[y * grid->width + grid->width - 1];
    }
    const float median = select_smallest(values, n, n / 2);
    for (int i = 0; i < n; i++)
        values[i] = values[i] < median ? median - values[i] : values[i] - median;
    return (struct border){median, select_smallest(values, n, n / 2),
                           select_smallest(values, n, n * 9 / 10)};
}

/* Sets samples of the grid's cells, and returns how many. */
static size_t take_samples(struct sample *samples, const struct grid *grid,
                           const struct paper *paper)
{
    size_t every = 1, n = 0;
    while ((grid->width / every + 1) * (grid->height / every + 1) > PAPER_SAMPLES)
        every++;
    const size_t first_x = smaller(every, grid->width) / 2;
    const size_t first_y = smaller(every, grid->height) / 2; /* inside, also of one row */
    for (size_t y = first_y; y < grid->height; y += every)
        for (size_t x = first_x; x < grid->width; x += every) {
            set_terms(samples[n].terms, paper, ((double)x + 0.5) * (double)grid->step,
                      ((double)y + 0.5) * (double)grid->step);
            samples[n++].value = grid->cells[y * grid->width + x];
        }
    return n;
}

/* Fits the paper: the border's median at first (inside a frame: the median), then what most samples
 * agree on, in steps. In a tight crop most of them are ink, but not at the border. */
static void find_paper(struct paper *paper, const struct grid *grid)
{
    struct sample samples[PAPER_SAMPLES];
    const struct border border = look_at_border(grid);
    *paper = (struct paper){.terms = {(double)border.median},
                            .x_scale = 2.0 / (double)(grid->width * grid->step),
                            .y_scale = 2.0 / (double)(grid->height * grid->step),
                            .sign = 1};
    const size_t n = take_samples(samples, grid, paper);
    const double near = larger(4 * (double)border.half, 6);
    const bool is_frame = typical_error(paper, samples, n, 6) > near;
    if (is_frame)
        paper->terms[0] = (double)median_sample(samples, n);
    paper->is_plain = !is_frame && border.most <= 2;
    const double most = is_frame ? 255 : near;
    double change = paper->is_plain ? 0 : 255;
    for (int round = 0; round < 12 && change > 2; round++) {
        const double limit = lesser(most, 3 * typical_error(paper, samples, n, 3));
        change = refit(paper, samples, n, larger(limit, 6));
    }
}

/* ---- ink ------------------------------------------------------------------------------------ */

/* Replaces the cells by their contrast to the paper. */
static void subtract_paper(struct grid *grid, const struct paper *paper)
{
    float *cell = grid->cells;
    for (size_t y = 0; y < grid->height; y++)
        for (size_t x = 0; x < grid->width; x++, cell++) {
            const double middle_x = (double)grid->x + ((double)x + 0.5) * (double)grid->step;
            const double middle_y = (double)grid->y + ((double)y + 0.5) * (double)grid->step;
            *cell = (float)(paper->sign * ((double)*cell - paper_at(paper, middle_x, middle_y)));
        }
}

/* Returns the standard deviation of the paper's cells, which may be few: from the quarter of all
 * that is nearest to the paper. If the picture is not cut off at black or white, also from the
 * median of those that ink of this sign cannot be. */
static double find_noise(const struct grid *grid, float sign)
{
    float errors[NOISE_SAMPLES] = {0}, opposite[NOISE_SAMPLES] = {0};
    const size_t cells = grid->width * grid->height;
    const size_t every = (cells + NOISE_SAMPLES - 1) / NOISE_SAMPLES;
    int n = 0, n_opposite = 0;
    for (size_t i = 0; i < cells; i += every) {
        const float value = sign * grid->cells[i];
        errors[n++] = value < 0 ? -value : value;
        if (value <= 0)
            opposite[n_opposite++] = -value;
    }
    const double noise = 3.14 * (double)select_smallest(errors, n, n / 4);
    return n_opposite <= n / 4 ? noise
                               : larger(noise, 1.48 * (double)select_smallest(opposite, n_opposite,
                                                                              n_opposite / 2));
}

/* Returns the typical contrast of the cells above `limit`: their mean, weighted by themselves. */
static double typical_level(const struct grid *grid, double limit)
{
    double sum = 0, squares = 0;
    for (size_t i = 0; i < grid->width * grid->height; i++) {
        const double value = (double)grid->cells[i];
        if (value > limit) {
            sum += value;
            squares += value * value;
        }
    }
    return sum > 0 ? squares / sum : 0;
}

/* Returns the sum of the contrasts that ink of this sign would have. */
static double ink_sum(const struct grid *grid, float sign)
{
    const double limit = larger(3 * find_noise(grid, sign), 2);
    double sum = 0;
    for (size_t i = 0; i < grid->width * grid->height; i++)
        if ((double)(sign * grid->cells[i]) > limit)
            sum += (double)(sign * grid->cells[i]);
    return sum;
}

/* A connected part of the ink, in cells. */
struct part {
    size_t x0, y0, x1, y1, cells;
    double sum, max;
};

enum { UNSEEN = UINT16_MAX };

/* Follows the part of the cells above `limit` that begins at `start`. `next` chains the cells whose
 * neighbours are still to be looked at. */
static struct part follow(struct grid *grid, size_t start, float limit)
{
    struct part part = {.x0 = SIZE_MAX, .y0 = SIZE_MAX};
    size_t last = start;
    grid->next[start] = (uint16_t)start; /* the last cell's next is itself */
    for (size_t cell = start;; cell = grid->next[cell]) {
        const size_t x = cell % grid->width, y = cell / grid->width;
        const double value = (double)grid->cells[cell];
        part.x0 = smaller(part.x0, x);
        part.y0 = smaller(part.y0, y);
        part.x1 = x + 1 > part.x1 ? x + 1 : part.x1;
        part.y1 = y + 1 > part.y1 ? y + 1 : part.y1;
        part.cells++;
        part.sum += value;
        part.max = larger(part.max, value);
        for (size_t v = y ? y - 1 : 0; v < smaller(y + 2, grid->height); v++)
            for (size_t u = x ? x - 1 : 0; u < smaller(x + 2, grid->width); u++) {
                const size_t near = v * grid->width + u;
                if (grid->cells[near] <= limit || grid->next[near] != UNSEEN)
                    continue;
                grid->next[last] = (uint16_t)near;
                grid->next[near] = (uint16_t)near;
                last = near;
            }
        if (cell == last)
            return part;
    }
}

enum { MAX_PARTS = 64 };

/* Lists the largest parts, by sum, the largest one first. */
static size_t find_parts(struct part *parts, struct grid *grid, float limit)
{
    size_t n = 0;
    memset(grid->next, 0xFF, grid->width * grid->height * sizeof *grid->next);
    for (size_t i = 0; i < grid->width * grid->height; i++) {
        if (grid->cells[i] <= limit || grid->next[i] != UNSEEN)
            continue;
        const struct part part = follow(grid, i, limit);
        if (n == MAX_PARTS && parts[MAX_PARTS - 1].sum >= part.sum)
            continue;
        size_t place = n < MAX_PARTS ? n++ : MAX_PARTS - 1;
        for (; place > 0 && parts[place - 1].sum < part.sum; place--)
            parts[place] = parts[place - 1];
        parts[place] = part;
    }
    return n;
}

/* A line or a frame from one side of the picture to the other. */
static bool crosses(const struct part *part, const struct grid *grid)
{
    return (part->x0 == 0 && part->x1 == grid->width) ||
           (part->y0 == 0 && part->y1 == grid->height);
}

/* Joins the parts that belong to a digit: the largest one, and others that are neither specks nor
 * noise, which makes parts of up to `noise` in sum. Returns a part without cells if there is none.
 * A line or a frame is a digit only if nothing else is drawn. */
static struct part join_parts(const struct grid *grid, const struct part *parts, size_t n,
                              double noise)
{
    size_t first = 0;
    if (n > 1 && crosses(&parts[0], grid) && !crosses(&parts[1], grid) &&
        parts[1].sum > 0.05 * parts[0].sum)
        first = 1;
    if (first >= n || parts[first].sum < noise)
        return (struct part){0};
    struct part all = parts[first];
    for (size_t i = first + 1; i < n && parts[i].sum >= larger(noise, 0.04 * parts[first].sum);
         i++) {
        if (crosses(&parts[i], grid) || parts[i].cells * 16 < parts[first].cells)
            continue;
        all.x0 = smaller(all.x0, parts[i].x0);
        all.y0 = smaller(all.y0, parts[i].y0);
        all.x1 = parts[i].x1 > all.x1 ? parts[i].x1 : all.x1;
        all.y1 = parts[i].y1 > all.y1 ? parts[i].y1 : all.y1;
        all.max = larger(all.max, parts[i].max);
    }
    return all;
}

/* Finds the ink in a grid whose cells are contrasts. Returns false, and leaves *ink as it is, if
 * nothing is drawn. */
static bool find_ink(struct ink *ink, struct grid *grid, const struct plane *plane)
{
    double noise = find_noise(grid, 1), level = typical_level(grid, larger(3 * noise, 2));
    struct ink found = {.noise = noise, .detail = 1, .step = grid->step};
    for (int i = 1; i <= 2 && level < 6 * noise; i++) {
        blur(grid);
        found.detail = (double)((2 * (size_t)i + 1) * grid->step);
        noise = find_noise(grid, 1);
        level = typical_level(grid, larger(3 * noise, 2));
    }
    if (level < MIN_LEVEL)
        return false;
    struct part parts[MAX_PARTS];
    const size_t n = find_parts(parts, grid, (float)larger(0.3 * level, 3 * noise));
    const struct part all = join_parts(grid, parts, n, (found.detail > 1 ? 30 : 10) * noise);
    if (all.cells == 0)
        return false;
    found.level = all.max;
    found.x0 = (double)(grid->x + all.x0 * grid->step);
    found.y0 = (double)(grid->y + all.y0 * grid->step);
    found.x1 = (double)smaller(grid->x + all.x1 * grid->step, plane->picture->width);
    found.y1 = (double)smaller(grid->y + all.y1 * grid->step, plane->picture->height);
    *ink = found;
    return true;
}

/* Finds paper and ink, with cells that are small next to the ink. */
static bool survey(const struct plane *plane, struct paper *paper, struct ink *ink)
{
    struct grid grid;
    const double width = (double)plane->picture->width, height = (double)plane->picture->height;
    read_grid(&grid, plane, 0, 0, plane->picture->width, plane->picture->height);
    find_paper(paper, &grid);
    subtract_paper(&grid, paper);
    paper->sign = ink_sum(&grid, 1) >= ink_sum(&grid, -1) ? 1 : -1;
    if (paper->sign < 0)
        for (size_t i = 0; i < grid.width * grid.height; i++)
            grid.cells[i] = -grid.cells[i];
    if (!find_ink(ink, &grid, plane))
        return false;
    for (int i = 0; i < 4; i++) {
        const double side = larger(ink->x1 - ink->x0, ink->y1 - ink->y0);
        if (ink->step == 1 || side > GRID / 2 * (double)ink->step)
            break;
        const double margin = 0.25 * side + (double)ink->step;
        read_grid(&grid, plane, (size_t)larger(ink->x0 - margin, 0),
                  (size_t)larger(ink->y0 - margin, 0), (size_t)lesser(ink->x1 + margin, width),
                  (size_t)lesser(ink->y1 + margin, height));
        subtract_paper(&grid, paper);
        if (!find_ink(ink, &grid, plane))
            break;
    }
    return true;
}

/* ---- result --------------------------------------------------------------------------------- */

/* A result [height, width]: bytes above 0 are ink. */
struct result {
    uint8_t *pixels;
    size_t height, width;
    double side; /* of the box that the ink should fill */
};

struct look {
    size_t x0, y0, x1, y1; /* box of the ink; empty: x0 >= x1 */
    int level;             /* the n-th brightest value, or the last one above 0 */
    int right, down;       /* the shift that brings the centre of mass into the middle */
};

static int shift_of(uint64_t moment, uint64_t sum, size_t side, size_t low, size_t high)
{
    /* ceil((side - 1) / 2 - moment / sum), which leaves the centre in 13.5 <= c < 14.5 of 28 */
    const int64_t over = (int64_t)((side - 1) * sum) - 2 * (int64_t)moment;
    const int64_t twice = 2 * (int64_t)sum;
    int64_t shift = over / twice + (over % twice > 0);
    if (shift < -(int64_t)low)
        shift = -(int64_t)low;
    if (shift > (int64_t)(side - high))
        shift = (int64_t)(side - high);
    return (int)shift;
}

static struct look look_at(const struct result *result)
{
    struct look look = {.x0 = result->width, .y0 = result->height};
    size_t counts[256] = {0}, wanted = (size_t)(result->side * result->side / 50) + 1;
    uint64_t sum = 0, moment_x = 0, moment_y = 0;
    const uint8_t *pixel = result->pixels;
    for (size_t y = 0; y < result->height; y++)
        for (size_t x = 0; x < result->width; x++) {
            const uint8_t value = *pixel++;
            counts[value]++;
            if (!value)
                continue;
            sum += value;
            moment_x += value * x;
            moment_y += value * y;
            look.x0 = smaller(look.x0, x);
            look.y0 = smaller(look.y0, y);
            look.x1 = x + 1 > look.x1 ? x + 1 : look.x1;
            look.y1 = y + 1;
        }
    if (sum == 0)
        return look;
    for (int value = 255; value > 0 && wanted > 0; value--)
        if (counts[value]) {
            look.level = value;
            wanted -= smaller(wanted, counts[value]);
        }
    look.right = shift_of(moment_x, sum, result->width, look.x0, look.x1);
    look.down = shift_of(moment_y, sum, result->height, look.y0, look.y1);
    return look;
}

static bool has_size(const struct look *look, const struct result *result)
{
    const double side = look->x1 < look->x0
                            ? 0
                            : larger((double)(look->x1 - look->x0), (double)(look->y1 - look->y0));
    return side >= 0.75 * result->side && side <= result->side + 2;
}

/* Returns the contrast of a window of `size` pixels a side, which the picture's edges cut off. */
static double contrast_at(const struct plane *plane, const struct paper *paper, double x, double y,
                          double size)
{
    const struct window window = {larger(x - size / 2, 0), larger(y - size / 2, 0),
                                  lesser(x + size / 2, (double)plane->picture->width),
                                  lesser(y + size / 2, (double)plane->picture->height)};
    if (window.x1 <= window.x0 || window.y1 <= window.y0)
        return 0;
    return paper->sign * (mamba_window_mean(plane, &window) - paper_at(paper, x, y));
}

/* Draws the ink's box in the middle, its contrast stretched. A box that nearly has the right size
 * is not scaled, which would blur it. Enlarging averages two neighbours, which interpolates. */
static void draw(const struct result *result, const struct plane *plane, const struct paper *paper,
                 const struct ink *ink)
{
    const double box_width = ink->x1 - ink->x0, box_height = ink->y1 - ink->y0;
    const double longer = larger(box_width, box_height);
    const bool fits = longer <= result->side && longer >= 0.85 * result->side;
    const double pixel = fits ? 1 : longer / result->side; /* of the result, in the picture */
    const double size = larger(larger(pixel, 1), lesser(ink->detail, 2 * pixel));
    const double noise = 2.5 * ink->noise * (double)ink->step / larger(size, (double)ink->step);
    const double left = (double)(size_t)(((double)result->width - box_width / pixel) / 2);
    const double top = (double)(size_t)(((double)result->height - box_height / pixel) / 2);
    const double level = ink->level < (double)FULL_LEVEL ? ink->level : 255;
    uint8_t *out = result->pixels;
    for (size_t v = 0; v < result->height; v++)
        for (size_t u = 0; u < result->width; u++, out++) {
            const double x = ink->x0 + ((double)u + 0.5 - left) * pixel;
            const double y = ink->y0 + ((double)v + 0.5 - top) * pixel;
            *out = 0;
            if (x < ink->x0 - pixel || x > ink->x1 + pixel || y < ink->y0 - pixel ||
                y > ink->y1 + pixel)
                continue;
            const double value = contrast_at(plane, paper, x, y, size);
            if (value > noise)
                *out = (uint8_t)lesser(255, value * 255 / level + 0.5);
        }
}

/* Stretches the contrast to 255. */
static void stretch(const struct result *result, unsigned level)
{
    if (level < FULL_LEVEL)
        for (size_t i = 0; i < result->width * result->height; i++)
            result->pixels[i] =
                (uint8_t)smaller((result->pixels[i] * 255u + level / 2) / level, 255);
}

/* Moves the ink, which stays inside. */
static void move(const struct result *result, int right, int down)
{
    const ptrdiff_t by = down * (ptrdiff_t)result->width + right;
    const size_t n = result->width * result->height, moved = (size_t)(by < 0 ? -by : by);
    if (by < 0) {
        memmove(result->pixels, result->pixels + moved, n - moved);
        memset(result->pixels + n - moved, 0, moved);
    } else {
        memmove(result->pixels + moved, result->pixels, n - moved);
        memset(result->pixels, 0, moved);
    }
}

/* Copies a picture that has the model's size. Returns whether it is a result already. */
static bool is_prepared(const struct result *result, const struct plane *plane)
{
    if (plane->picture->width != result->width || plane->picture->height != result->height)
        return false;
    for (size_t y = 0; y < result->height; y++)
        for (size_t x = 0; x < result->width; x++)
            result->pixels[y * result->width + x] = (uint8_t)(mamba_pixel(plane, x, y) + 0.5);
    const struct look look = look_at(result);
    return look.level >= FULL_LEVEL && look.right == 0 && look.down == 0 && has_size(&look, result);
}

static mamba_status nothing_drawn(const mamba_picture *picture, mamba_error *error)
{
    return mamba_fail(error, MAMBA_ERR_EMPTY, NULL,
                      "nothing drawn: got %zu x %zu pixels of paper, expected a digit on it",
                      picture->width, picture->height);
}

/* Results of this function pass it unchanged: is_prepared accepts all of them. */
mamba_status mamba_prepare_digit(const struct plane *grey, uint32_t height, uint32_t width,
                                 uint8_t *out, mamba_error *error)
{
    const double shorter = (double)smaller(height, width);
    const struct result result = {out, height, width, (double)(size_t)(shorter * 20 / 28 + 0.5)};
    struct paper paper;
    struct ink ink;
    if (is_prepared(&result, grey))
        return MAMBA_OK;
    if (!survey(grey, &paper, &ink))
        return nothing_drawn(grey->picture, error);
    draw(&result, grey, &paper, &ink);
    struct look look = look_at(&result);
    if (!has_size(&look, &result)) /* no stroke is wide enough to be seen */
        return nothing_drawn(grey->picture, error);
    stretch(&result, (unsigned)look.level);
    look = look_at(&result);
    move(&result, look.right, look.down);
    return MAMBA_OK;
}
