/* fit.h: the searches for a run's scale that several types share. One lane is one run of n values.
 *
 * The searches repeat ggml's sequence of float operations (ggml-quants.c of llama.cpp b11434; its name for each search
 * stands beside ours), for their results must be equal to the last bit.
 *
 * Codes are computed anew once the scale is packed. Only where the packed scale is 0 do the search's own codes stand,
 * so most searches do not return codes but what their codes are computed from.
 */
enum { MAX_RUN = 32 };

/* Candidates of a scale + minimum search: inverse scales (first + step * k + max_code) / (max - min), k = 0..last. */
typedef struct {
    float first, step;
    int last;
    bool absolute; /* the error is sum w |diff|, not sum w diff^2 */
    bool guarded;  /* candidates' codes are clamped before they are rounded, not after */
} scale_min_search;

/* x ~ scale * code - minimum, code 0..max_code, minimum >= 0. The search's codes are those of `code_of` from inverse
 * and origin, guarded where a candidate won and the search is guarded. */
typedef struct {
    lane_f scale, minimum;
    lane_f inverse, origin;
    lane_mask guarded;
} scale_min_fit;

/* The guard differs from the plain clamp only for infinity, NaN and beyond +-4194303. */
INLINE lane_i code_of(lane_f x, lane_f inverse, lane_f origin, int max_code, bool guarded) {
    const lane_f v = inverse * (x - origin);
    if (!guarded) return clamp(nearest(v), 0, max_code);
    const lane_f top = splat((float)max_code);
    return nearest(pick(gt(v, splat(0)), pick(lt(v, top), v, top), splat(0)));
}

/* make_qkx2_quants, make_qkx3_quants: minimise sum_i w_i (scale * code_i - minimum - x_i)^2 over the candidates.
 * For each candidate the codes are fixed first and scale and minimum solve the two normal equations
 *     scale = (sum w * sum w l x - sum w x * sum w l) / D,  -minimum = (sum w l^2 * sum w x - sum w l * sum w l x) / D,
 *     D = sum w * sum w l^2 - (sum w l)^2,
 * with minimum held at >= 0. The running best minimum is what codes count from and what the candidates' range ends at:
 * each better candidate moves it for those that follow. A run of equal values has inverse = infinity, so codes 0
 * (nearest(NaN)) and scale 0. */
INLINE scale_min_fit fit_scale_min(const lane_f *x, const lane_f *w, int n, int max_code, scale_min_search search) {
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

    scale_min_fit best = {.inverse = (float)max_code / (high - low), .origin = low, .guarded = lt(zero, zero)};
    best.scale = 1.0f / best.inverse;
    lane_f best_low = low, best_error = zero;
    for (int i = 0; i < n; i++) {
        const lane_f code = to_float(code_of(x[i], best.inverse, low, max_code, false));
        const lane_f diff = best.scale * code + low - x[i];
        best_error += w[i] * (search.absolute ? absolute(diff) : diff * diff);
    }

    for (int k = 0; k <= search.last; k++) {
        const lane_f inverse = (search.first + search.step * (float)k + (float)max_code) / (high - best_low);
        lane_f code[MAX_RUN];
        lane_f sum_l = zero, sum_l2 = zero, sum_xl = zero;
        for (int i = 0; i < n; i++) {
            code[i] = to_float(code_of(x[i], inverse, best_low, max_code, search.guarded));
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
            const lane_f diff = scale * code[i] + min - x[i];
            error += w[i] * (search.absolute ? absolute(diff) : diff * diff);
        }
        const lane_mask better = both(gt(det, zero), lt(error, best_error));
        best_error = pick(better, error, best_error);
        best.scale = pick(better, scale, best.scale);
        best.inverse = pick(better, inverse, best.inverse);
        best.origin = pick(better, best_low, best.origin);
        best_low = pick(better, min, best_low);
        if (search.guarded) best.guarded = either(best.guarded, better);
    }
    best.minimum = -best_low;
    return best;
}

/* x ~ scale * code, code -half..half - 1. The search's codes are clamp(nearest(inverse * x)).
 * In an empty run (all |x| < RUN_EPSILON) scale is 0 and ggml stores the code byte 0, not half. */
typedef struct {
    lane_f scale, inverse;
    lane_mask empty;
} scale_fit;

#define RUN_EPSILON 1e-15f

/* The first value of largest magnitude, and whether that magnitude is below RUN_EPSILON. */
INLINE lane_f find_peak(const lane_f *x, int n, lane_mask *empty) {
    lane_f largest = splat(0), peak = splat(0);
    for (int i = 0; i < n; i++) {
        const lane_f magnitude = absolute(x[i]);
        const lane_mask larger = gt(magnitude, largest);
        largest = pick(larger, magnitude, largest);
        peak = pick(larger, x[i], peak);
    }
    *empty = lt(largest, splat(RUN_EPSILON));
    return peak;
}

/* The two sums that decide how good an inverse scale is: sum_lx = sum_i w_i x_i code_i, sum_l2 = sum_i w_i code_i^2. */
INLINE void scale_sums(const lane_f *x, const lane_f *w, int n, int half, lane_f inverse, lane_f *sum_lx,
                       lane_f *sum_l2) {
    *sum_lx = *sum_l2 = splat(0);
    for (int i = 0; i < n; i++) {
        const lane_f code = to_float(clamp(nearest(inverse * x[i]), -half, half - 1));
        *sum_lx += w[i] * x[i] * code;
        *sum_l2 += w[i] * code * code;
    }
}

/* make_qx_quants: minimise sum_i w_i (scale * code_i - x_i)^2, which for given codes means scale = sum_lx / sum_l2 and
 * the largest sum_lx^2 / sum_l2, over the inverse scales -(half + k / 10) / peak, k = 0, then -9..-1, 1..9. */
INLINE scale_fit fit_scale(const lane_f *x, const lane_f *w, int n, int half) {
    const lane_f zero = splat(0);
    scale_fit best;
    const lane_f peak = find_peak(x, n, &best.empty);
    lane_f sum_lx, sum_l2;
    best.inverse = (float)-half / peak;
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

/* make_q3_quants: the same objective with w_i = x_i^2, from the plain inverse scale on by moving one code at a time,
 * at most five times through the run. code[i] - half is the code; an empty run has code 0. Returns the scale. */
INLINE lane_f descend_scale(const lane_f *x, int n, int half, lane_i *code) {
    const lane_f zero = splat(0);
    lane_mask empty;
    const lane_f inverse = (float)-half / find_peak(x, n, &empty);
    lane_f level[MAX_RUN], sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < n; i++) {
        level[i] = to_float(clamp(nearest(inverse * x[i]), -half, half - 1));
        const lane_f w = x[i] * x[i];
        sum_lx += w * x[i] * level[i];
        sum_l2 += w * level[i] * level[i];
    }
    for (int round = 0; round < 5; round++) {
        bool changed = false; /* a lane in which nothing changed once will not change again */
        for (int i = 0; i < n; i++) {
            const lane_f w = x[i] * x[i];
            const lane_f rest_lx = sum_lx - w * x[i] * level[i];
            const lane_f rest_l2 = sum_l2 - w * level[i] * level[i];
            const lane_f moved = to_float(clamp(nearest(x[i] * rest_l2 / rest_lx), -half, half - 1));
            const lane_f lx = rest_lx + w * x[i] * moved, l2 = rest_l2 + w * moved * moved;
            lane_mask better = both(gt(rest_lx, zero), gt(l2, zero));
            better = both(better, gt(lx * lx * sum_l2, sum_lx * sum_lx * l2));
            better = both(better, not_eq (moved, level[i]));
            level[i] = pick(better, moved, level[i]);
            sum_lx = pick(better, lx, sum_lx);
            sum_l2 = pick(better, l2, sum_l2);
            changed |= any(better);
        }
        if (!changed) break;
    }
    for (int i = 0; i < n; i++) code[i] = pick_i(empty, nearest(zero), nearest(level[i]) + half);
    return pick(empty, zero, pick(gt(sum_l2, zero), sum_lx / sum_l2, zero));
}

/* make_qp_quants: x ~ unit * code, code 0..max_code, for the scales or minima of one block in each lane.
 * First the inverse scale (max_code + k / 10) / max, k = 0, then -4..-1, 1..4, with the least sum w (x - scale code)^2,
 * then moving one code at a time as above. Codes are bytes: what is negative wraps, as ggml's do. Returns the unit. */
INLINE lane_f fit_positive(const lane_f *x, const lane_f *w, int n, int max_code, lane_i *code) {
    const lane_f zero = splat(0);
    lane_f max = zero;
    for (int i = 0; i < n; i++) max = pick(gt(max, x[i]), max, x[i]);
    const lane_mask empty = lt(max, splat(RUN_EPSILON));

    lane_f inverse = (float)max_code / max, best_error = zero;
    const lane_f scale = 1.0f / inverse;
    for (int i = 0; i < n; i++) {
        const lane_f diff = x[i] - scale * to_float(nearest(inverse * x[i]) & 255);
        best_error += w[i] * diff * diff;
    }
    for (int k = -4; k <= 4; k++) {
        if (k == 0) continue;
        const lane_f other = (0.1f * (float)k + (float)max_code) / max, other_scale = 1.0f / other;
        lane_f error = zero;
        for (int i = 0; i < n; i++) {
            const lane_f diff = x[i] - other_scale * to_float(at_most(nearest(other * x[i]), max_code));
            error += w[i] * diff * diff;
        }
        const lane_mask better = lt(error, best_error);
        best_error = pick(better, error, best_error);
        inverse = pick(better, other, inverse);
    }
    lane_f sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < n; i++) {
        const lane_i l = at_most(nearest(inverse * x[i]), max_code);
        code[i] = l & 255;
        sum_lx += w[i] * x[i] * to_float(l);
        sum_l2 += w[i] * to_float(l) * to_float(l);
    }
    for (int round = 0; round < 5; round++) {
        bool changed = false;
        for (int i = 0; i < n; i++) {
            const lane_f level = to_float(code[i]);
            const lane_f rest_lx = sum_lx - w[i] * x[i] * level;
            const lane_f rest_l2 = sum_l2 - w[i] * level * level;
            const lane_i moved = at_most(nearest(x[i] * rest_l2 / rest_lx), max_code);
            const lane_f lx = rest_lx + w[i] * x[i] * to_float(moved);
            const lane_f l2 = rest_l2 + w[i] * to_float(moved) * to_float(moved);
            lane_mask better = both(gt(rest_lx, zero), gt(rest_l2, zero));
            better = both(better, gt(lx * lx * sum_l2, sum_lx * sum_lx * l2));
            better = both(better, not_eq (to_float(moved), level));
            code[i] = pick_i(better, moved & 255, code[i]);
            sum_lx = pick(better, lx, sum_lx);
            sum_l2 = pick(better, l2, sum_l2);
            changed |= any(better);
        }
        if (!changed) break;
    }
    for (int i = 0; i < n; i++) code[i] = pick_i(empty, nearest(zero), code[i]);
    return pick(empty, zero, pick(gt(sum_l2, zero), sum_lx / sum_l2, zero));
}
