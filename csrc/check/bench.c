/* bench.c: how fast the kernels are, without Python and without anything to compare with but themselves. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, CLOCK_MONOTONIC */
#include "bench.h"

#include <float.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "../quantkit.h"
#include "rooms.h"

enum { MIN_TURNS = 3, MAX_ISAS = 8 };

static const struct {
    qk_type type;
    const char *name;
} TYPES[] = {
    {QK_F16, "F16"},   {QK_BF16, "BF16"}, {QK_Q4_0, "Q4_0"}, {QK_Q4_1, "Q4_1"}, {QK_Q5_0, "Q5_0"}, {QK_Q5_1, "Q5_1"},
    {QK_Q8_0, "Q8_0"}, {QK_Q2_K, "Q2_K"}, {QK_Q3_K, "Q3_K"}, {QK_Q4_K, "Q4_K"}, {QK_Q5_K, "Q5_K"}, {QK_Q6_K, "Q6_K"},
};
enum { N_TYPES = sizeof TYPES / sizeof TYPES[0] };

typedef enum { ENCODE, WEIGHTED, DECODE, N_MODES } mode;
static const char *const MODE_NAMES[] = {"encode", "encode with importance", "decode"};

/* One type in one mode: what a call is given and fills. */
typedef struct {
    qk_type type;
    mode mode;
    int64_t n_rows, n_columns;
    const float *rows, *importance;
    uint8_t *blocks;
    float *values;
} work;

/* The next number from 0 up to 1. */
static float uniform(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407); /* Knuth's MMIX */
    return (float)(*state >> 40) * 0x1p-24f;
}

/* Near enough to Gaussian: twelve uniform numbers less 6. */
static float bell(uint64_t *state) {
    float sum = -6;
    for (int i = 0; i < 12; i++) sum += uniform(state);
    return sum;
}

static size_t blocks_nbytes(const work *w) { return (size_t)(w->n_rows * qk_row_bytes(w->type, w->n_columns)); }
static size_t rows_nbytes(const work *w) { return (size_t)(w->n_rows * w->n_columns) * sizeof(float); }

static void call(const work *w) {
    const float *importance = w->mode == WEIGHTED ? w->importance : NULL;
    int64_t unfit;
    const qk_status status = w->mode == DECODE ? qk_decode(w->type, w->blocks, w->n_rows, w->n_columns, w->values)
                                               : qk_encode(w->type, w->rows, w->n_rows, w->n_columns, importance,
                                                           FLT_MAX, w->blocks, &unfit);
    if (status != QK_OK) fail("a kernel refuses the benchmark's weights");
}

/* Every instruction set's answer against the first one's, which is left in `expected`. */
static void compare(const work *w, const char *type_name, void *expected) {
    void *const answer = w->mode == DECODE ? (void *)w->values : w->blocks;
    const size_t nbytes = w->mode == DECODE ? rows_nbytes(w) : blocks_nbytes(w);
    for (int isa = 0; isa < qk_n_isas(); isa++) {
        memset(answer, 0, nbytes);
        qk_use(qk_isa_name(isa));
        call(w);
        if (isa == 0) memcpy(expected, answer, nbytes);
        if (memcmp(expected, answer, nbytes) == 0) continue;
        char reason[128];
        snprintf(reason, sizeof reason, "%s and %s differ in %s, %s", qk_isa_name(isa), qk_isa_name(0), type_name,
                 MODE_NAMES[w->mode]);
        fail(reason);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double best_of_a_turn(const work *w, double turn_seconds) {
    const double begin = now();
    double best = 1e9, end;
    do {
        const double start = now();
        call(w);
        end = now();
        if (end - start < best) best = end - start;
    } while (end - begin < turn_seconds);
    return best;
}

/* The best million weights a second of each instruction set; they take turns, so that what disturbs the machine meets
 * all of them. */
static void print_speeds(const work *w, double turn_seconds) {
    double best[MAX_ISAS];
    for (int turn = 0; turn < MIN_TURNS; turn++) {
        for (int isa = 0; isa < qk_n_isas(); isa++) {
            qk_use(qk_isa_name(isa));
            const double seconds = best_of_a_turn(w, turn_seconds);
            if (turn == 0 || seconds < best[isa]) best[isa] = seconds;
        }
    }
    for (int isa = 0; isa < qk_n_isas(); isa++) printf("%10.0f", 1e-6 * (double)(w->n_rows * w->n_columns) / best[isa]);
}

static work make_work(int64_t n_rows, int64_t n_columns) {
    work w = {.n_rows = n_rows, .n_columns = n_columns};
    const size_t nbytes = rows_nbytes(&w), row_nbytes = (size_t)n_columns * sizeof(float);
    float *rows = put(make_room(nbytes), AT_END, sizeof(float), nbytes);
    float *importance = put(make_room(row_nbytes), AT_END, sizeof(float), row_nbytes);
    uint64_t state = 1;
    for (int64_t i = 0; i < n_rows * n_columns; i++) rows[i] = 0.02f * bell(&state);
    for (int64_t i = 0; i < n_columns; i++) importance[i] = 0.5f + uniform(&state);
    w.rows = rows;
    w.importance = importance;
    w.values = put(make_room(nbytes), AT_END, sizeof(float), nbytes);
    return w;
}

/* The same work for one type in one mode; what is to be decoded is encoded first. */
static work of_type(work w, qk_type type, mode m, room blocks) {
    w.type = type;
    w.blocks = put(blocks, AT_END, 1, blocks_nbytes(&w));
    w.mode = ENCODE;
    if (m == DECODE) call(&w);
    w.mode = m;
    return w;
}

void bench(int64_t n_rows, int64_t n_columns, double turn_seconds) {
    if (n_rows < 1 || n_columns < 1 || n_columns % 256 != 0) fail("the benchmark takes rows of whole blocks of 256");
    const work all = make_work(n_rows, n_columns);
    const room blocks = make_room(rows_nbytes(&all)), expected = make_room(rows_nbytes(&all));
    for (int i = 0; i < N_TYPES; i++) {
        for (mode m = ENCODE; m < N_MODES; m++) {
            const work w = of_type(all, TYPES[i].type, m, blocks);
            compare(&w, TYPES[i].name, expected.start);
        }
    }
    printf("million weights a second, %lld x %lld, one thread; every answer equals that of %s\n", (long long)n_rows,
           (long long)n_columns, qk_isa_name(0));
    for (mode m = ENCODE; m < N_MODES; m++) {
        printf("\n%-22s", MODE_NAMES[m]);
        for (int isa = 0; isa < qk_n_isas(); isa++) printf("%10s", qk_isa_name(isa));
        for (int i = 0; i < N_TYPES; i++) {
            const work w = of_type(all, TYPES[i].type, m, blocks);
            printf("\n%-22s", TYPES[i].name);
            print_speeds(&w, turn_seconds);
            fflush(stdout);
        }
        puts("");
    }
}
