/* feedback.c: the kernels of ../factor.h and ../feedback.h, fed from stdin; what they are given lies between guard
 * pages. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "feedback.h"

#include <float.h>
#include <stdbool.h>
#include <string.h>

#include "rooms.h"

enum { MATRIX, IMPORTANCE, ORDER, ROWS, BLOCKS, ERRORS, N_ARRAYS };

/* A room, what was read for it, and what was found in it the first time. */
typedef struct {
    room room;
    size_t nbytes, element_bytes;
    void *given, *found;
} array;

static array make_array(int64_t n, size_t element_bytes, int is_input) {
    array a = {.nbytes = (size_t)n * element_bytes, .element_bytes = element_bytes};
    a.room = make_room(a.nbytes + element_bytes);
    a.given = calloc(a.nbytes + 1, 1);
    a.found = calloc(a.nbytes + 1, 1);
    if (a.given == NULL || a.found == NULL) fail("no memory");
    if (is_input && fread(a.given, 1, a.nbytes, stdin) != a.nbytes) fail("stdin is too short");
    return a;
}

/* H = G G^T, rows above a strip in two pieces, and then H = M D M^T. */
static void factorize(float *h, int64_t n) {
    int64_t column;
    for (int64_t first = (n - 1) / QK_STRIP * QK_STRIP; first >= 0; first -= QK_STRIP) {
        const int64_t width = n - first < QK_STRIP ? n - first : QK_STRIP, half = first / 3;
        if (qk_factor(h, n, first, first, width, 0, &column) != QK_OK) fail("not positive definite");
        if (qk_factor(h, n, first, 0, half, 0, &column) != QK_OK) fail("refused");
        if (qk_factor(h, n, first, half, first - half, 0, &column) != QK_OK) fail("refused");
    }
    for (int64_t j = 0; j < n; j++) {
        const float pivot = h[j * n + j];
        for (int64_t i = 0; i < j; i++) h[i * n + j] /= pivot;
        h[j * n + j] = pivot * pivot;
        for (int64_t i = j + 1; i < n; i++) h[i * n + j] = 0; /* nothing is promised of what is there */
    }
}

/* The same in every place: what is written, and that nothing else is. */
static void run(qk_type type, int64_t n_rows, int64_t n_columns, array *arrays, place where) {
    void *at[N_ARRAYS];
    int64_t unfit;
    for (int i = 0; i < N_ARRAYS; i++) {
        at[i] = put(arrays[i].room, where, arrays[i].element_bytes, arrays[i].nbytes);
        memcpy(at[i], arrays[i].given, arrays[i].nbytes);
    }
    factorize(at[MATRIX], n_columns);
    if (where == AT_START) memcpy(arrays[MATRIX].found, at[MATRIX], arrays[MATRIX].nbytes);
    if (qk_encode_feedback(type, at[ROWS], n_rows, n_columns, at[ORDER], at[MATRIX], at[IMPORTANCE], FLT_MAX,
                           at[ERRORS], at[BLOCKS], &unfit) != QK_OK)
        fail("refused");
    for (int i = IMPORTANCE; i <= ROWS; i++)
        if (memcmp(at[i], arrays[i].given, arrays[i].nbytes) != 0) fail("a kernel wrote into its input");
    for (int i = BLOCKS; i <= ERRORS && where == AT_START; i++) memcpy(arrays[i].found, at[i], arrays[i].nbytes);
    for (int i = 0; i < N_ARRAYS; i++)
        if ((i < IMPORTANCE || i > ROWS) && memcmp(at[i], arrays[i].found, arrays[i].nbytes) != 0)
            fail("the result depends on where it lies");
}

void feedback(qk_type type, int64_t n_rows, int64_t n_columns) {
    const int64_t row_bytes = qk_row_bytes(type, n_columns);
    if (row_bytes < 0) fail("unknown type or bad shape");
    array arrays[N_ARRAYS] = {
        [MATRIX] = make_array(n_columns * n_columns, sizeof(float), 1),
        [IMPORTANCE] = make_array(n_columns, sizeof(float), 1),
        [ORDER] = make_array(n_columns, 1, 1),
        [ROWS] = make_array(n_rows * n_columns, sizeof(float), 1),
        [BLOCKS] = make_array(n_rows * row_bytes, 1, 0),
        [ERRORS] = make_array(n_rows * n_columns, sizeof(float), 0),
    };
    for (place where = AT_START; where < N_PLACES; where++) run(type, n_rows, n_columns, arrays, where);
    for (int i = 0; i < N_ARRAYS; i++) {
        const bool is_result = i < IMPORTANCE || i > ROWS;
        if (is_result && fwrite(arrays[i].found, 1, arrays[i].nbytes, stdout) != arrays[i].nbytes)
            fail("stdout is full");
        free(arrays[i].given);
        free(arrays[i].found);
    }
    if (fflush(stdout) != 0) fail("stdout is full");
}
