/* feedback.h: blocks whose codes make good for each other, column by column.
 *
 * What a row of weights loses is e H e^T, H the second moments of what it is multiplied by, e = weight - value. With
 * H = M D M^T, M unit upper triangular and D diagonal, that is
 *
 *     sum_j D_j (corrected_j - value_j)^2,      corrected_j = weight_j + sum_{i < j} e_i M_ij,
 *
 * so columns are rounded one after another, each as near as its block allows to what the errors before it make of it
 * (LDLQ: Chee et al. 2023; the same as GPTQ: Frantar et al. 2022). The columns of a panel are then rounded again in the
 * same order, each as near to what makes the panel's part of the sum least while the others stay:
 *
 *     value_i + sum_{j >= i} D_j miss_j M_ij / C_ii,      miss = corrected - value,      C = M D M^T of the panel.
 *
 * A panel's scales are found just before it, by the type's own encoder from its corrected weights, and then ROUNDS - 1
 * times anew from what its columns were last asked to be; each row keeps the round with the least sum. Scales stay
 * while columns are rounded, so these may come in any order, and M and the errors are in that order.
 *
 * Rows are independent. The sum of a corrected weight begins with the weight and goes through i in order: errors before
 * a panel come as one product (product.h), those within it lane by lane, lane = row.
 */
enum { PANEL = QK_PANEL, GROUP = 8, PANEL_RUNS = PANEL / 16, ROUNDS = 3 };
_Static_assert(PANEL % BLOCK_256 == 0 && PANEL % DEPTH == 0, "panels are whole blocks and whole pieces of a sum");
_Static_assert(BLOCK_32 % GROUP == 0, "blocks are whole groups");

/* What all rows of a panel share. order: its columns as they are rounded; importance: of its columns; d: D. GROUP rows
 * of M stand side by side: factor[g][j][a] is M of row g * GROUP + a and column j, for j from the group's first on, 1
 * on the diagonal and 0 below it. curvature[i][b]: C of row i and column b of its group; inverse: 1 / C_ii, or 0. */
typedef struct {
    const qk_kernel *type;
    int width;
    const uint8_t *order;
    int64_t n_columns;
    const float *importance;
    float limit;
    float d[PANEL], inverse[PANEL], curvature[PANEL][GROUP], factor[PANEL / GROUP][PANEL][GROUP];
} panel;

/* LANES rows of a panel while they are coded: the scales of their runs, and of each column, in the order of rounding,
 * what it was asked to be, its code as a level, the code of 0 being level 0, and corrected - value. */
typedef struct {
    lane_f step[PANEL_RUNS], offset[PANEL_RUNS], asked[PANEL], level[PANEL], miss[PANEL];
} coded;

/* factor: M D M^T from the panel's first row and column on, with D on the diagonal. */
static void set_factor(panel *p, const float *factor) {
    for (int i = 0; i < p->width; i++) p->d[i] = factor[i * p->n_columns + i];
    for (int i = 0; i < p->width; i += GROUP) {
        float (*m)[GROUP] = p->factor[i / GROUP], sum[GROUP][GROUP] = {{0}};
        for (int j = i; j < p->width; j++)
            for (int a = 0; a < GROUP; a++)
                m[j][a] = j > i + a ? factor[(i + a) * p->n_columns + j] : j == i + a ? 1.0f : 0.0f;
        for (int j = i; j < p->width; j++)
            for (int a = 0; a < GROUP; a++)
                for (int b = 0; b < GROUP; b++) sum[a][b] += p->d[j] * m[j][a] * m[j][b];
        memcpy(p->curvature[i], sum, sizeof sum);
        for (int a = 0; a < GROUP; a++) p->inverse[i + a] = sum[a][a] > 0 ? 1 / sum[a][a] : 0;
    }
}

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

/* The level nearest to x that the type has. */
INLINE lane_f nearest_level(const qk_coding *coding, lane_f x) {
    const lane_f least = splat((float)-coding->zero), most = splat((float)(coding->max_code - coding->zero));
    return nearest_moderate(smaller(larger(x, least), most)) + 0.0f; /* and no -0 */
}

INLINE lane_f value_of(const panel *p, const coded *x, int i) {
    const int run = p->order[i] / p->type->coding->run;
    return x->step[run] * x->level[i] - x->offset[run];
}

/* Round the columns of a panel in their order, each against the scale of its run; asked begins as the corrected weights
 * before the panel. weight: in the panel's own order. */
INLINE void round_columns(const panel *p, const lane_f *weight, coded *x) {
    for (int i = 0; i < p->width; i += GROUP) {
        const float (*m)[GROUP] = p->factor[i / GROUP];
        lane_f error[GROUP];
        for (int a = 0; a < GROUP; a++) {
            const int column = p->order[i + a], run = column / p->type->coding->run;
            lane_f asked = x->asked[i + a];
            for (int b = 0; b < a; b++) asked += error[b] * m[i + a][b];
            const lane_f level = nearest_level(p->type->coding, (asked + x->offset[run]) / x->step[run]);
            /* where the step is 0 any code means the same; it passes for that of 0 */
            x->level[i + a] = pick(eq(x->step[run], splat(0)), splat(0), level);
            const lane_f value = value_of(p, x, i + a);
            error[a] = weight[column] - value;
            x->asked[i + a] = asked;
            x->miss[i + a] = asked - value;
        }
        for (int j = i + GROUP; j < p->width; j++) {
            lane_f asked = x->asked[j];
            for (int a = 0; a < GROUP; a++) asked += error[a] * m[j][a];
            x->asked[j] = asked;
        }
    }
}

/* Round them again, each while the others stay. The sums of a group are found at once, and what its own columns then
 * move is subtracted from them. */
INLINE void round_again(const panel *p, coded *x) {
    for (int i = 0; i < p->width; i += GROUP) {
        const float (*m)[GROUP] = p->factor[i / GROUP];
        lane_f sum[GROUP], moved[GROUP];
        for (int a = 0; a < GROUP; a++) sum[a] = splat(0);
        for (int j = i; j < p->width; j++) {
            const lane_f miss = p->d[j] * x->miss[j];
            for (int a = 0; a < GROUP; a++) sum[a] += miss * m[j][a];
        }
        for (int a = 0; a < GROUP; a++) {
            const int run = p->order[i + a] / p->type->coding->run;
            const lane_f step = x->step[run], level = x->level[i + a];
            /* levels for a unit of the sum: a division that does not wait for it */
            const lane_f rate = pick(eq(step, splat(0)), splat(0), p->inverse[i + a] / step);
            x->asked[i + a] = value_of(p, x, i + a) + sum[a] * p->inverse[i + a];
            x->level[i + a] = nearest_level(p->type->coding, level + sum[a] * rate);
            moved[a] = step * (x->level[i + a] - level);
            for (int b = a + 1; b < GROUP; b++) sum[b] -= moved[a] * p->curvature[i + a][b];
        }
        for (int j = i; j < p->width; j++) {
            lane_f miss = x->miss[j];
            for (int a = 0; a < GROUP; a++) miss -= moved[a] * m[j][a];
            x->miss[j] = miss;
        }
    }
}

/* x, which is in the order of rounding, as dense rows in the panel's own. */
INLINE void to_rows(const panel *p, const lane_f *x, float *rows) {
    lane_f own_order[PANEL];
    for (int i = 0; i < p->width; i++) own_order[p->order[i]] = x[i];
    store_panel(own_order, LANES, p->width, rows, p->width);
}

/* Pack LANES rows: scales from the dense rows `like`, codes from x->asked, the corrected weights. Returns the panel's
 * part of the sum above. */
INLINE lane_f pack_panel(const panel *p, const float *like, const lane_f *weight, coded *x, uint8_t *packed) {
    const qk_coding *coding = p->type->coding;
    const int n = (int)p->type->block_weights, nbytes = (int)p->type->block_bytes, n_blocks = LANES * p->width / n;
    const int runs = p->width / coding->run, block_runs = n / coding->run;
    float steps[LANES * PANEL_RUNS], offsets[LANES * PANEL_RUNS];
    lane_i code[PANEL];
    uint8_t q[LANES * PANEL];
    lane_f loss = splat(0);
    p->type->encode(like, LANES, p->width, p->importance, packed);
    for (int b = 0; b < n_blocks; b++)
        coding->scales(packed + b * nbytes, steps + b * block_runs, offsets + b * block_runs);
    for (int r = 0; r < runs; r++) {
        x->step[r] = gather(steps, r, runs);
        x->offset[r] = gather(offsets, r, runs);
    }
    round_columns(p, weight, x);
    round_again(p, x);
    for (int i = 0; i < p->width; i++) {
        code[p->order[i]] = nearest(x->level[i]) + coding->zero;
        loss += p->d[i] * (x->miss[i] * x->miss[i]);
    }
    store_code_runs(q, p->width, code);
    for (int b = 0; b < n_blocks; b++) coding->put_codes(q + b * n, packed + b * nbytes);
    return loss;
}

/* One panel of at most LANES rows: corrected holds their corrected weights, in the order of rounding, and gets their
 * errors. Returns the place of a corrected weight that cannot be packed, row * width + column, or -1. */
static int64_t code_panel(const panel *p, const float *rows, float *corrected, int n_rows, uint8_t *out,
                          int64_t row_bytes) {
    const int width = p->width, nbytes = width / (int)p->type->block_weights * (int)p->type->block_bytes;
    lane_f weight[PANEL], start[PANEL], error[PANEL], best = splat(0);
    float like[LANES * PANEL];
    coded x;
    load_panel(rows, p->n_columns, n_rows, width, weight);
    load_panel(corrected, p->n_columns, n_rows, width, start);
    to_rows(p, start, like);
    const int64_t unfit = JOIN(qk_find_unfit, SUFFIX)(like, LANES * width, p->limit);
    if (unfit < LANES * width) return unfit;
    for (int round = 0; round < ROUNDS; round++) {
        uint8_t packed[LANES * PANEL];
        float is_better[LANES];
        memcpy(x.asked, start, sizeof start);
        const lane_f loss = pack_panel(p, like, weight, &x, packed);
        const lane_mask better = round == 0 ? eq(splat(0), splat(0)) : lt(loss, best);
        best = pick(better, loss, best);
        for (int i = 0; i < width; i++) {
            error[i] = pick(better, weight[p->order[i]] - value_of(p, &x, i), error[i]);
            x.asked[i] = smaller(larger(x.asked[i], splat(-p->limit)), splat(p->limit)); /* it may have grown */
        }
        store(is_better, pick(better, splat(1), splat(0)));
        for (int j = 0; j < n_rows; j++)
            if (is_better[j] != 0) memcpy(out + j * row_bytes, packed + j * nbytes, (size_t)nbytes);
        to_rows(p, x.asked, like);
    }
    store_panel(error, n_rows, width, corrected, p->n_columns);
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
            for (int d = 0; d < DEPTH; d++) /* of a size that the compiler knows: rows are far apart, and wait less */
                for (int c = 0; c < columns; c += BLOCK_32)
                    memcpy(b[d] + c, factor + (i + d) * n_columns + first + at + c, BLOCK_32 * sizeof(float));
            add_strip(errors + first + at, n_columns, columns, errors + i, n_columns, n_rows, b, DEPTH);
        }
    }
}

int64_t JOIN(qk_feed_back, SUFFIX)(const qk_kernel *type, const float *rows, int64_t n_rows, int64_t n_columns,
                                   const uint8_t *order, const float *factor, const float *importance, float limit,
                                   float *errors, uint8_t *blocks) {
    const int64_t row_bytes = n_columns / type->block_weights * type->block_bytes;
    panel p;
    p.type = type;
    p.n_columns = n_columns;
    p.limit = limit;
    for (int64_t first = 0; first < n_columns; first += PANEL) {
        const int width = n_columns - first < PANEL ? (int)(n_columns - first) : PANEL;
        p.width = width;
        p.order = order + first;
        p.importance = importance + first;
        set_factor(&p, factor + first * n_columns + first);
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
