/* low_rank.c: the kernels of ../low_rank.h, fed from stdin; what they are given lies between guard pages. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "low_rank.h"

#include <string.h>

#include "../quantkit.h"
#include "rooms.h"

enum { N_ARRAYS = 4 }; /* rows, coefficients, basis, norms */

/* An array in a room of its own, and a copy of what was read into it. */
typedef struct {
    room room;
    size_t nbytes;
    void *given;
} array;

static array make_array(int64_t n_floats, int is_input) {
    array a = {.nbytes = (size_t)n_floats * sizeof(float)};
    a.room = make_room(a.nbytes + sizeof(float));
    a.given = calloc(a.nbytes + 1, 1);
    if (a.given == NULL) fail("no memory");
    if (is_input && fread(a.given, 1, a.nbytes, stdin) != a.nbytes) fail("stdin is too short");
    return a;
}

void low_rank(int64_t n_rows, int64_t n_columns, int64_t rank) {
    array arrays[N_ARRAYS] = {make_array(n_rows * n_columns, 1), make_array(n_rows * rank, 1),
                              make_array(rank * n_columns, 1), make_array(n_rows, 0)};
    array merged = make_array(n_rows * n_columns, 0), norms = make_array(n_rows, 0);
    for (place where = AT_START; where < N_PLACES; where++) {
        float *at[N_ARRAYS];
        for (int i = 0; i < N_ARRAYS; i++) {
            at[i] = put(arrays[i].room, where, sizeof(float), arrays[i].nbytes);
            memcpy(at[i], arrays[i].given, arrays[i].nbytes);
        }
        if (qk_add_low_rank(at[0], n_rows, n_columns, at[1], at[2], rank, 0.37f) != QK_OK) fail("refused");
        if (qk_row_norms(at[0], n_rows, n_columns, at[3]) != QK_OK) fail("refused");
        for (int i = 1; i < 3; i++)
            if (memcmp(at[i], arrays[i].given, arrays[i].nbytes) != 0) fail("a kernel wrote into its input");
        if (where == AT_START) {
            memcpy(merged.given, at[0], merged.nbytes);
            memcpy(norms.given, at[3], norms.nbytes);
        }
        if (memcmp(merged.given, at[0], merged.nbytes) != 0) fail("rows depend on where they lie");
        if (memcmp(norms.given, at[3], norms.nbytes) != 0) fail("norms depend on where they lie");
    }
    if (fwrite(merged.given, 1, merged.nbytes, stdout) != merged.nbytes) fail("stdout is full");
    if (fwrite(norms.given, 1, norms.nbytes, stdout) != norms.nbytes || fflush(stdout) != 0) fail("stdout is full");
    for (int i = 0; i < N_ARRAYS; i++) free(arrays[i].given);
    free(merged.given);
    free(norms.given);
}
