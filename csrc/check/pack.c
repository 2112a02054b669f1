/* pack.c: the kernels without Python, for emulators, compilers and sanitizers.
 *
 *     pack --list                             the instruction sets of this build and processor, one a line
 *     pack ISA TYPE N_ROWS N_COLUMNS          stdin: float32 rows; stdout: their blocks, then the floats these mean
 *     pack ISA TYPE N_ROWS N_COLUMNS -i       stdin: one row of importance before the rows
 *     pack ISA TYPE N_ROWS N_COLUMNS -d       stdin: blocks; stdout: the floats these mean
 *     pack ISA low-rank N_ROWS N_COLUMNS RANK stdin: rows, coefficients, basis; stdout: merged rows, their norms
 *     pack ISA feedback TYPE N_ROWS N_COLUMNS stdin: moments, importance, order, rows; stdout: factor, blocks, errors
 *     pack --bench N_ROWS N_COLUMNS SECONDS   the speed of every type and instruction set, in turns of SECONDS each,
 *                                             once their bytes have been compared
 *
 * TYPE is ggml's number. Whatever a kernel is given lies between two pages that must not be touched. Exits with 0, or
 * with 1 and a sentence.
 */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <float.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../quantkit.h"
#include "bench.h"
#include "feedback.h"
#include "low_rank.h"
#include "rooms.h"

enum { SLAB_ROWS = 97 }; /* rows of one call: odd, so that groups of rows and of lanes are cut short too */

static void *allocate(size_t nbytes) {
    void *p = malloc(nbytes + 1); /* of no bytes, too, something that is not NULL */
    if (p == NULL) fail("no memory");
    return p;
}

static void *read_bytes(size_t nbytes) {
    void *p = allocate(nbytes);
    if (fread(p, 1, nbytes, stdin) != nbytes) fail("stdin is too short");
    return p;
}

typedef struct {
    qk_type type;
    int64_t n_columns, row_bytes;
    const float *importance; /* a row, or NULL */
    bool only_decode;
    room rows, blocks, weights;
} task;

/* One call of the kernels on n rows: blocks from rows unless they are given, then values from the blocks. */
static void pack(const task *t, place at, int64_t n, const float *rows, uint8_t *blocks, float *values) {
    const size_t row_floats = (size_t)t->n_columns * sizeof(float);
    const size_t rows_nbytes = (size_t)n * row_floats, blocks_nbytes = (size_t)(n * t->row_bytes);
    float *x = put(t->rows, at, sizeof(float), rows_nbytes), *importance = NULL;
    uint8_t *packed = put(t->blocks, at, 1, blocks_nbytes);
    if (t->importance != NULL) {
        importance = put(t->weights, at, sizeof(float), row_floats);
        memcpy(importance, t->importance, row_floats);
    }
    if (t->only_decode) {
        memcpy(packed, blocks, blocks_nbytes);
    } else {
        int64_t unfit;
        memcpy(x, rows, rows_nbytes);
        if (qk_encode(t->type, x, n, t->n_columns, importance, FLT_MAX, packed, &unfit) != QK_OK) fail("unfit value");
        if (memcmp(x, rows, rows_nbytes) != 0) fail("a kernel wrote into its rows");
    }
    memcpy(blocks, packed, blocks_nbytes);
    if (qk_decode(t->type, packed, n, t->n_columns, x) != QK_OK) fail("decode refuses");
    memcpy(values, x, rows_nbytes);
}

/* All rows, a slab a call. The first slab in every place, and nothing may depend on the place; the others in turn. */
static void pack_all(const task *t, int64_t n_rows, const float *rows, uint8_t *blocks, float *values) {
    for (int64_t row = 0; row < n_rows; row += SLAB_ROWS) {
        const int64_t n = n_rows - row < SLAB_ROWS ? n_rows - row : SLAB_ROWS;
        const float *x = rows + row * t->n_columns;
        uint8_t *packed = blocks + row * t->row_bytes;
        float *y = values + row * t->n_columns;
        pack(t, (place)(row / SLAB_ROWS % N_PLACES), n, x, packed, y);
        if (row > 0) continue;
        const size_t packed_nbytes = (size_t)(n * t->row_bytes), y_nbytes = (size_t)(n * t->n_columns) * sizeof(float);
        uint8_t *again = allocate(packed_nbytes);
        float *y_again = allocate(y_nbytes);
        for (place at = AT_END; at < N_PLACES; at++) {
            memcpy(again, packed, packed_nbytes);
            pack(t, at, n, x, again, y_again);
            if (memcmp(again, packed, packed_nbytes) != 0) fail("blocks depend on where they lie");
            if (memcmp(y_again, y, y_nbytes) != 0) fail("floats depend on where they lie");
        }
        free(again);
        free(y_again);
    }
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (int i = 0; i < qk_n_isas(); i++) puts(qk_isa_name(i));
        return 0;
    }
    if (argc == 5 && strcmp(argv[1], "--bench") == 0) {
        bench(atoll(argv[2]), atoll(argv[3]), atof(argv[4]));
        return 0;
    }
    if (argc == 6 && strcmp(argv[2], "low-rank") == 0) {
        if (qk_use(argv[1]) != QK_OK) fail("no such instruction set here");
        low_rank(atoll(argv[3]), atoll(argv[4]), atoll(argv[5]));
        return 0;
    }
    if (argc == 6 && strcmp(argv[2], "feedback") == 0) {
        if (qk_use(argv[1]) != QK_OK) fail("no such instruction set here");
        feedback((qk_type)atoi(argv[3]), atoll(argv[4]), atoll(argv[5]));
        return 0;
    }
    const char *option = argc == 6 ? argv[5] : "";
    const bool weighted = strcmp(option, "-i") == 0, only_decode = strcmp(option, "-d") == 0;
    if (argc != 5 && !weighted && !only_decode)
        fail("usage: pack --list, pack --bench N_ROWS N_COLUMNS SECONDS, or pack ISA TYPE N_ROWS N_COLUMNS [-i | -d]");
    if (qk_use(argv[1]) != QK_OK) fail("no such instruction set here");
    const int64_t n_rows = atoll(argv[3]);
    task t = {.type = (qk_type)atoi(argv[2]), .n_columns = atoll(argv[4]), .only_decode = only_decode};
    t.row_bytes = qk_row_bytes(t.type, t.n_columns);
    if (t.row_bytes < 0 || n_rows < 0) fail("unknown type or bad shape");

    const size_t row_floats = (size_t)t.n_columns * sizeof(float), rows_nbytes = (size_t)n_rows * row_floats;
    const size_t blocks_nbytes = (size_t)(n_rows * t.row_bytes);
    float *importance = weighted ? read_bytes(row_floats) : NULL;
    float *rows = only_decode ? allocate(rows_nbytes) : read_bytes(rows_nbytes);
    uint8_t *blocks = only_decode ? read_bytes(blocks_nbytes) : allocate(blocks_nbytes);
    float *values = allocate(rows_nbytes);
    t.importance = importance;
    t.rows = make_room(SLAB_ROWS * row_floats);
    t.blocks = make_room((size_t)(SLAB_ROWS * t.row_bytes));
    t.weights = make_room(row_floats);

    pack_all(&t, n_rows, rows, blocks, values);
    if (!only_decode && fwrite(blocks, 1, blocks_nbytes, stdout) != blocks_nbytes) fail("stdout is full");
    if (fwrite(values, 1, rows_nbytes, stdout) != rows_nbytes || fflush(stdout) != 0) fail("stdout is full");
    free(importance);
    free(rows);
    free(blocks);
    free(values);
    return 0;
}
