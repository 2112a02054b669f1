/* fit.h: the searches for a run's scale that several types share. One lane is one run of n values.
 *
 * The searches repeat ggml's sequence of float operations (make_qkx2_quants, make_qx_quants in ggml-quants.c), for
 * their results must be equal to the last bit. They return no codes but what codes are computed from, because the
 * codes of most runs are computed anew once the scale is packed. Where the packed scale is 0 the search's own stand.
 */

/* What scale + minimum means: x ~ scale * code - minimum, code 0..max_code, minimum >= 0.
 * The search's codes are clamp(nearest(inverse * (x - origin))). */
typedef struct {
    lane_f scale, minimum;
    lane_f inverse, origin;
} scale_min_fit;

/* Candidates of the search: inverse scales (first + step * k + max_code) / (max - min) for k = 0..last. */
typedef struct {
    float first, step;
    int last;
} scale_min_search;

static inline lane_i code_of(lane_f x, lane_f inverse, lane_f origin, int max_code) {
    return clamp(nearest(inverse * (x - origin)), 0, max_code);
}

/* Minimise sum_i w_i (scale * code_i - minimum - x_i)^2 over the candidates.
 * For each candidate the codes are fixed first and scale and minimum solve the two normal equations
 *     scale = (sum w * sum w l x - sum w x * sum w l) / D,  -minimum = (sum w l^2 * sum w x - sum w l * sum w l x) / D,
 *     D = sum w * sum w l^2 - (sum w l)^2,
 * with minimum held at >= 0. The running best minimum is what codes count from and what the candidates' range ends at:
 * each better candidate moves it for those that follow. A run of equal values has inverse = infinity, so codes 0
 * (nearest(NaN)) and scale 0. */
static inline scale_min_fit fit_scale_min(const lane_f *x, const lane_f *w, int n, int max_code,
                                          scale_min_search search) {
    const lane_f zero = splat(0);
    lane_f low = x[0], high = x[0];
    lane_f sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < n; i++) {
        low = pick(lt(x[i], low), x[i], low);
        high = pick(gt(x[i], high), x[i], high);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    low = pick(gt(low, zero), zero, low);

    scale_min_fit best = {.inverse = (float)max_code / (high - low), .origin = low};
    best.scale = 1.0f / best.inverse;
    lane_f best_low = low, best_error = zero;
    for (int i = 0; i < n; i++) {
        lane_f code = to_float(code_of(x[i], best.inverse, low, max_code));
        lane_f diff = best.scale * code + low - x[i];
        best_error += w[i] * (diff * diff);
    }

    for (int k = 0; k <= search.last; k++) {
        const lane_f inverse = (search.first + search.step * (float)k + (float)max_code) / (high - best_low);
        lane_f code[32];
        lane_f sum_l = zero, sum_l2 = zero, sum_xl = zero;
        for (int i = 0; i < n; i++) {
            code[i] = to_float(code_of(x[i], inverse, best_low, max_code));
            const lane_f wl = w[i] * code[i];
            sum_l += wl;
            sum_l2 += wl * code[i];
            sum_xl += wl * x[i];
        }
        const lane_f det = sum_w * sum_l2 - sum_l * sum_l;
        lane_f scale = (sum_w * sum_xl - sum_x * sum_l) / det;
        lane_f min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        const lane_mask positive = gt(min, zero);
        scale = pick(positive, sum_xl / sum_l2, scale);
        min = pick(positive, zero, min);
        lane_f error = zero;
        for (int i = 0; i < n; i++) {
            lane_f diff = scale * code[i] + min - x[i];
            error += w[i] * (diff * diff);
        }
        const lane_mask better = both(gt(det, zero), lt(error, best_error));
        best_error = pick(better, error, best_error);
        best.scale = pick(better, scale, best.scale);
        best.inverse = pick(better, inverse, best.inverse);
        best.origin = pick(better, best_low, best.origin);
        best_low = pick(better, min, best_low);
    }
    best.minimum = -best_low;
    return best;
}

/* What scale alone means: x ~ scale * code, code -half..half - 1. The search's codes are clamp(nearest(inverse * x)).
 * In an empty run (all |x| < RUN_EPSILON) scale is 0 and ggml stores the code byte 0, not half. */
typedef struct {
    lane_f scale, inverse;
    lane_mask empty;
} scale_fit;

#define RUN_EPSILON 1e-15f

/* The two sums that decide how good an inverse scale is: sum_lx = sum_i w_i x_i code_i, sum_l2 = sum_i w_i code_i^2. */
static inline void scale_sums(const lane_f *x, const lane_f *w, int n, int half, lane_f inverse, lane_f *sum_lx,
                              lane_f *sum_l2) {
    *sum_lx = *sum_l2 = splat(0);
    for (int i = 0; i < n; i++) {
        const lane_f code = to_float(clamp(nearest(inverse * x[i]), -half, half - 1));
        *sum_lx += w[i] * x[i] * code;
        *sum_l2 += w[i] * code * code;
    }
}

/* Minimise sum_i w_i (scale * code_i - x_i)^2, which for given codes means scale = sum_lx / sum_l2 and the largest
 * sum_lx^2 / sum_l2, over the inverse scales -(half + k / 10) / (value of largest magnitude), k = 0, then -9..-1, 1..9.
 */
static inline scale_fit fit_scale(const lane_f *x, const lane_f *w, int n, int half) {
    const lane_f zero = splat(0);
    lane_f largest = zero, peak = zero;
    for (int i = 0; i < n; i++) {
        const lane_f magnitude = absolute(x[i]);
        const lane_mask larger = gt(magnitude, largest);
        largest = pick(larger, magnitude, largest);
        peak = pick(larger, x[i], peak);
    }

    lane_f sum_lx, sum_l2;
    scale_fit best = {.inverse = (float)-half / peak, .empty = lt(largest, splat(RUN_EPSILON))};
    scale_sums(x, w, n, half, best.inverse, &sum_lx, &sum_l2);
    best.scale = pick(eq(sum_l2, zero), zero, sum_lx / sum_l2);
    lane_f best_score = best.scale * sum_lx;
    for (int k = -9; k <= 9; k++) {
        if (k == 0) continue;
        const lane_f inverse = -((float)half + 0.1f * (float)k) / peak;
        scale_sums(x, w, n, half, inverse, &sum_lx, &sum_l2);
        const lane_mask better = both(gt(sum_l2, zero), gt(sum_lx * sum_lx, best_score * sum_l2));
        best.scale = pick(better, sum_lx / sum_l2, best.scale);
        best.inverse = pick(better, inverse, best.inverse);
        best_score = pick(better, best.scale * sum_lx, best_score);
    }
    best.scale = pick(best.empty, zero, best.scale);
    return best;
}
