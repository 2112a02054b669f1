/* feedback.h: blocks whose codes make good for each other, column by column.
 *
 * What a row of weights loses is e H e^T, H the second moments of what it is multiplied by, e = weight - value. With
 * H = M D M^T, M unit upper triangular and D diagonal, that is
 *
 *     sum_j D_j (corrected_j - value_j)^2,      corrected_j = weight_j + sum_{i < j} e_i M_ij,
 *
 * so columns are rounded one after another, each as near as its block allows to what the errors before it make of it
 * (LDLQ: Chee et al. 2023; the same as GPTQ: Frantar et al. 2022). A panel's scales are found just before it, by the
 * type's own encoder from its corrected weights, and then ROUNDS - 1 times anew from what its columns were then asked
 * to be; each row keeps the round with the least sum. Scales stay while columns are rounded, so these may come in any
 * order, and M and the errors are in that order.
 *
 * Rows are independent. The sum of a corrected weight begins with the weight and goes through i in order: errors before
 * a panel come as one product (product.h), those within it lane by lane, lane = row.
 */
enum { PANEL = QK_PANEL, GROUP = 32, PANEL_RUNS = PANEL / 16, ROUNDS = 3 };
_Static_assert(PANEL % BLOCK_256 == 0 && PANEL % DEPTH == 0, "panels are whole blocks and whole pieces of a sum");

/* What all rows of a panel share. order: its columns as they are rounded; factor: M D M^T from the panel's first row
 * and column on, with D on the diagonal; importance: of its columns. */
typedef struct {
    const qk_kernel *type;
    int width;
    const uint8_t *order;
    const float *factor;
    int64_t n_columns;
    const float *importance;
    float limit;
} panel;

/* LANES rows of a panel: lane j of entry c is column c of row j. Rows that are not there are 0. */
INLINE void load_panel(const float *rows, int64_t stride, int n_rows, int width, lane_f *x) {
    for (int c = 0; c < width; c += LANES) {
        for (int j = 0; j < LANES; j++) x[c + j] = j < n_rows ? load(rows + j * stride + c) : splat(0);
        transpose(x + c);
    }
}

INLINE void store_panel(const lane_f *x, int n_rows, int width, float *rows, int64_t stride) {
    for (int c = 0; c < width; c += LANES) {
        lane_f some[LANES];
        for (int j = 0; j < LANES; j++) some[j] = x[c + j];
        transpose(some);
        for (int j = 0; j < n_rows; j++) store(rows + j * stride + c, some[j]);
    }
}

/* Add the errors of a group to the corrected weights after it in the panel. */
INLINE void pass_on(const lane_f *error, const float *factor, int64_t n_columns, int from, int width, lane_f *x) {
    enum { AT_ONCE = 8 };
    for (int c = from + GROUP; c < width; c += AT_ONCE) {
        lane_f sum[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) sum[k] = x[c + k];
        for (int i = from; i < from + GROUP; i++)
            for (int k = 0; k < AT_ONCE; k++) sum[k] += error[i] * factor[i * n_columns + c + k];
        for (int k = 0; k < AT_ONCE; k++) x[c + k] = sum[k];
    }
}

/* Code the columns of a panel in their order, each against the scale of its run. x: corrected weights, in that order;
 * each is left as its column was asked to be. weight and code: in the panel's own order. Returns the panel's part of
 * the sum above. */
INLINE lane_f code_columns(const panel *p, const lane_f *step, const lane_f *offset, const lane_f *weight, lane_f *x,
                           lane_f *error, lane_i *code) {
    const qk_coding *coding = p->type->coding;
    const lane_f least = splat((float)-coding->zero), most = splat((float)(coding->max_code - coding->zero));
    lane_f loss = splat(0);
    for (int i = 0; i < p->width; i++) {
        const int column = p->order[i], run = column / coding->run;
        const float *row = p->factor + i * p->n_columns;
        const lane_f level = (x[i] + offset[run]) / step[run];
        const lane_f nearest_level = nearest_moderate(smaller(larger(level, least), most)) + 0.0f; /* and no -0 */
        /* where the step is 0 any code means the same; it passes for that of 0 */
        const lane_f kept = pick(eq(step[run], splat(0)), splat(0), nearest_level);
        const lane_f value = step[run] * kept - offset[run], miss = x[i] - value;
        error[i] = weight[column] - value;
        code[column] = nearest(kept) + coding->zero;
        loss += row[i] * (miss * miss);
        for (int c = i + 1; c < (i / GROUP + 1) * GROUP; c++) x[c] += error[i] * row[c];
        if (i % GROUP == GROUP - 1) pass_on(error, p->factor, p->n_columns, i - (GROUP - 1), p->width, x);
    }
    return loss;
}

/* x, which is in the order of rounding, as dense rows in the panel's own. */
INLINE void to_rows(const panel *p, const lane_f *x, float *rows) {
    lane_f own_order[PANEL];
    for (int i = 0; i < p->width; i++) own_order[p->order[i]] = x[i];
    store_panel(own_order, LANES, p->width, rows, p->width);
}

/* Pack LANES rows whose corrected weights are x: scales from the dense rows `like`. The rest as of code_columns. */
INLINE lane_f pack_panel(const panel *p, const float *like, const lane_f *weight, lane_f *x, lane_f *error,
                         uint8_t *packed) {
    const qk_coding *coding = p->type->coding;
    const int n = (int)p->type->block_weights, nbytes = (int)p->type->block_bytes, n_blocks = LANES * p->width / n;
    const int runs = p->width / coding->run, block_runs = n / coding->run;
    float steps[LANES * PANEL_RUNS], offsets[LANES * PANEL_RUNS];
    lane_f step[PANEL_RUNS], offset[PANEL_RUNS];
    lane_i code[PANEL];
    uint8_t q[LANES * PANEL];
    p->type->encode(like, LANES, p->width, p->importance, packed);
    for (int b = 0; b < n_blocks; b++)
        coding->scales(packed + b * nbytes, steps + b * block_runs, offsets + b * block_runs);
    for (int r = 0; r < runs; r++) {
        step[r] = gather(steps, r, runs);
        offset[r] = gather(offsets, r, runs);
    }
    const lane_f loss = code_columns(p, step, offset, weight, x, error, code);
    store_code_runs(q, p->width, code);
    for (int b = 0; b < n_blocks; b++) coding->put_codes(q + b * n, packed + b * nbytes);
    return loss;
}

/* One panel of at most LANES rows: corrected holds their corrected weights, in the order of rounding, and gets their
 * errors. Returns the place of a corrected weight that cannot be packed, row * width + column, or -1. */
static int64_t code_panel(const panel *p, const float *rows, float *corrected, int n_rows, uint8_t *out,
                          int64_t row_bytes) {
    const int width = p->width, nbytes = width / (int)p->type->block_weights * (int)p->type->block_bytes;
    lane_f weight[PANEL], start[PANEL], x[PANEL], error[PANEL], best_error[PANEL], best = splat(0);
    float like[LANES * PANEL];
    load_panel(rows, p->n_columns, n_rows, width, weight);
    load_panel(corrected, p->n_columns, n_rows, width, start);
    to_rows(p, start, like);
    const int64_t unfit = JOIN(qk_find_unfit, SUFFIX)(like, LANES * width, p->limit);
    if (unfit < LANES * width) return unfit;
    for (int round = 0; round < ROUNDS; round++) {
        uint8_t packed[LANES * PANEL];
        float is_better[LANES];
        memcpy(x, start, sizeof x);
        const lane_f loss = pack_panel(p, like, weight, x, error, packed);
        const lane_mask better = round == 0 ? eq(splat(0), splat(0)) : lt(loss, best);
        best = pick(better, loss, best);
        for (int i = 0; i < width; i++) {
            best_error[i] = pick(better, error[i], best_error[i]);
            x[i] = smaller(larger(x[i], splat(-p->limit)), splat(p->limit)); /* what was asked may have grown */
        }
        store(is_better, pick(better, splat(1), splat(0)));
        for (int j = 0; j < n_rows; j++)
            if (is_better[j] != 0) memcpy(out + j * row_bytes, packed + j * nbytes, (size_t)nbytes);
        to_rows(p, x, like);
    }
    store_panel(best_error, n_rows, width, corrected, p->n_columns);
    return -1;
}

/* corrected = rows + errors before the panel times the factor, for all rows of a group. */
static void correct_panel(const float *rows, int64_t n_rows, int64_t n_columns, int64_t first, int width,
                          const uint8_t *order, const float *factor, float *errors) {
    for (int64_t r = 0; r < n_rows; r++)
        for (int i = 0; i < width; i++) errors[r * n_columns + first + i] = rows[r * n_columns + first + order[i]];
    strip b;
    memset(b, 0, sizeof b);
    for (int at = 0; at < width; at += STRIP) {
        const int columns = width - at < STRIP ? width - at : STRIP;
        for (int64_t i = 0; i < first; i += DEPTH) {
            for (int d = 0; d < DEPTH; d++)
                memcpy(b[d], factor + (i + d) * n_columns + first + at, (size_t)columns * sizeof(float));
            add_strip(errors + first + at, n_columns, columns, errors + i, n_columns, n_rows, b, DEPTH);
        }
    }
}

int64_t JOIN(qk_feed_back, SUFFIX)(const qk_kernel *type, const float *rows, int64_t n_rows, int64_t n_columns,
                                   const uint8_t *order, const float *factor, const float *importance, float limit,
                                   float *errors, uint8_t *blocks) {
    const int64_t row_bytes = n_columns / type->block_weights * type->block_bytes;
    for (int64_t first = 0; first < n_columns; first += PANEL) {
        const int width = n_columns - first < PANEL ? (int)(n_columns - first) : PANEL;
        const panel p = {type, width, order + first, factor + first * n_columns + first, n_columns, importance + first,
                         limit};
        uint8_t *out = blocks + first / type->block_weights * type->block_bytes;
        correct_panel(rows, n_rows, n_columns, first, width, order + first, factor, errors);
        for (int64_t r = 0; r < n_rows; r += LANES) {
            const int some = n_rows - r < LANES ? (int)(n_rows - r) : LANES;
            const int64_t at = r * n_columns + first;
            const int64_t unfit = code_panel(&p, rows + at, errors + at, some, out + r * row_bytes, row_bytes);
            if (unfit >= 0) return at + unfit / width * n_columns + unfit % width;
        }
    }
    return -1;
}
