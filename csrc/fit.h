/* fit.h: the searches for a run's scale that several types share. One lane is one run of n values.
 *
 * The searches repeat ggml's sequence of float operations (ggml-quants.c of llama.cpp b11434; its name for each search
 * stands beside ours), for their results must be equal to the last bit.
 *
 * Codes are computed anew once the scale is packed. Only where the packed scale is 0 do the search's own codes stand,
 * so most searches do not return codes but what their codes are computed from.
 */

/* Candidates of a scale + minimum search: inverse scales (first + step * k + max_code) / (max - min), k = 0..last. */
typedef struct {
    float first, step;
    int last;
    bool absolute; /* the error is sum w |diff|, not sum w diff^2 */
    bool guarded;  /* candidates' codes are clamped before they are rounded, not after */
} scale_min_search;

/* x ~ scale * code - minimum, code 0..max_code, minimum >= 0. The search's codes are those of `code_of` from inverse
 * and origin, GUARDED where a candidate won and the search is guarded, else PLAIN. */
typedef struct {
    lane_f scale, minimum;
    lane_f inverse, origin;
    lane_mask guarded;
} scale_min_fit;

/* GUARDED differs from PLAIN only for infinity, NaN and beyond +-4194303. MODERATE is either where there is none of
 * that, in fewer operations, but that a code may be -0, which no sum and no error shows. */
typedef enum { PLAIN, GUARDED, MODERATE } rounding;

/* The code of x, a float. */
INLINE lane_f code_of(lane_f x, lane_f inverse, lane_f origin, int max_code, rounding how) {
    const lane_f v = inverse * (x - origin);
    if (how == PLAIN) return within(nearest_float(v), 0, max_code);
    if (how == MODERATE) return nearest_moderate(within(v, 0, max_code));
    return nearest_moderate(smaller(larger(v, splat(0)), splat((float)max_code)));
}

/* The search's own code of x. */
INLINE lane_i own_scale_min_code(lane_f x, scale_min_fit fit, int max_code) {
    return nearest(pick(fit.guarded, code_of(x, fit.inverse, fit.origin, max_code, GUARDED),
                        code_of(x, fit.inverse, fit.origin, max_code, PLAIN)));
}

/* Whether code_of may be MODERATE for all x in low..high: whether it may be for both ends. */
INLINE bool is_moderate(lane_f low, lane_f high, lane_f inverse, lane_f origin) {
    const lane_f bottom = inverse * (low - origin), top = inverse * (high - origin);
    return all(lt(bottom * bottom + top * top, splat(4194303.0f * 4194303.0f / 2)));
}

/* What a run brings to a scale + minimum search, and the best of it so far. */
typedef struct {
    lane_f low, high; /* the least and the greatest value, the least at most 0 */
    lane_f sum_w, sum_x;
    lane_f best_low, best_error;
} scale_min_state;

/* A candidate's sums over a run: of w l, w l^2 and w l x. */
typedef struct {
    lane_f l, l2, xl;
} code_sums;

INLINE lane_f weighted_error(lane_f w, lane_f diff, bool is_absolute) {
    return w * (is_absolute ? absolute(diff) : diff * diff);
}

/* The range, the sums of w and w x, and codes from the least value on as the first candidate. */
INLINE scale_min_state start_scale_min(const lane_f *x, const lane_f *w, int n, int max_code, bool is_absolute,
                                       scale_min_fit *best) {
    lane_f low = x[0], high = x[0], sum_w = w[0], sum_x = w[0] * x[0], error = splat(0);
    for (int i = 1; i < n; i++) {
        low = smaller(x[i], low);
        high = larger(x[i], high);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    low = pick(gt(low, splat(0)), splat(0), low);
    const lane_f inverse = (float)max_code / (high - low), scale = 1.0f / inverse;
    for (int i = 0; i < n; i++) {
        const lane_f code = code_of(x[i], inverse, low, max_code, PLAIN);
        error += weighted_error(w[i], scale * code + low - x[i], is_absolute);
    }
    *best = (scale_min_fit){.scale = scale, .inverse = inverse, .origin = low, .guarded = lt(low, low)};
    return (scale_min_state){low, high, sum_w, sum_x, .best_low = low, .best_error = error};
}

/* Fix the codes of one candidate of each group. */
INLINE void code_candidates(lane_f (*x)[MAX_RUN], lane_f (*w)[MAX_RUN], int groups, int n, int max_code, rounding how,
                            const lane_f *inverse, const scale_min_state *state, lane_f (*code)[MAX_RUN],
                            code_sums *sums) {
    lane_f origin[GROUPS], l[GROUPS], l2[GROUPS], xl[GROUPS];
    for (int g = 0; g < groups; g++) {
        origin[g] = state[g].best_low;
        l[g] = l2[g] = xl[g] = splat(0);
    }
    for (int i = 0; i < n; i++) {
        for (int g = 0; g < groups; g++) {
            code[g][i] = code_of(x[g][i], inverse[g], origin[g], max_code, how);
            const lane_f wl = w[g][i] * code[g][i];
            l[g] += wl;
            l2[g] += wl * code[g][i];
            xl[g] += wl * x[g][i];
        }
    }
    for (int g = 0; g < groups; g++) sums[g] = (code_sums){l[g], l2[g], xl[g]};
}

/* make_qkx2_quants, make_qkx3_quants: minimise sum_i w_i (scale * code_i - minimum - x_i)^2 over the candidates.
 * For each candidate the codes are fixed first and scale and minimum solve the two normal equations
 *     scale = (sum w * sum w l x - sum w x * sum w l) / D,  -minimum = (sum w l^2 * sum w x - sum w l * sum w l x) / D,
 *     D = sum w * sum w l^2 - (sum w l)^2,
 * with minimum held at >= 0. The running best minimum is what codes count from and what the candidates' range ends at:
 * each better candidate moves it for those that follow. A run of equal values has inverse = infinity, so codes 0
 * (nearest(NaN)) and scale 0. */
INLINE void fit_scale_min(lane_f (*x)[MAX_RUN], lane_f (*w)[MAX_RUN], int groups, int n, int max_code,
                          scale_min_search search, scale_min_fit *best) {
    const lane_f zero = splat(0);
    scale_min_state s[GROUPS];
    for (int g = 0; g < groups; g++) s[g] = start_scale_min(x[g], w[g], n, max_code, search.absolute, &best[g]);

    for (int k = 0; k <= search.last; k++) {
        lane_f code[GROUPS][MAX_RUN], inverse[GROUPS], scale[GROUPS], min[GROUPS], error[GROUPS];
        code_sums sum[GROUPS];
        lane_mask solved[GROUPS];
        bool moderate = true;
        for (int g = 0; g < groups; g++) {
            inverse[g] = (search.first + search.step * (float)k + (float)max_code) / (s[g].high - s[g].best_low);
            moderate &= is_moderate(s[g].low, s[g].high, inverse[g], s[g].best_low);
        }
        if (moderate)
            code_candidates(x, w, groups, n, max_code, MODERATE, inverse, s, code, sum);
        else
            code_candidates(x, w, groups, n, max_code, search.guarded ? GUARDED : PLAIN, inverse, s, code, sum);
        for (int g = 0; g < groups; g++) {
            const lane_f det = s[g].sum_w * sum[g].l2 - sum[g].l * sum[g].l;
            scale[g] = (s[g].sum_w * sum[g].xl - s[g].sum_x * sum[g].l) / det;
            min[g] = (sum[g].l2 * s[g].sum_x - sum[g].l * sum[g].xl) / det;
            const lane_mask positive = gt(min[g], zero);
            scale[g] = pick(positive, sum[g].xl / sum[g].l2, scale[g]);
            min[g] = pick(positive, zero, min[g]);
            solved[g] = gt(det, zero);
            error[g] = zero;
        }
        for (int i = 0; i < n; i++)
            for (int g = 0; g < groups; g++)
                error[g] += weighted_error(w[g][i], scale[g] * code[g][i] + min[g] - x[g][i], search.absolute);
        for (int g = 0; g < groups; g++) {
            const lane_mask better = both(solved[g], lt(error[g], s[g].best_error));
            s[g].best_error = pick(better, error[g], s[g].best_error);
            best[g].scale = pick(better, scale[g], best[g].scale);
            best[g].inverse = pick(better, inverse[g], best[g].inverse);
            best[g].origin = pick(better, s[g].best_low, best[g].origin);
            s[g].best_low = pick(better, min[g], s[g].best_low);
            if (search.guarded) best[g].guarded = either(best[g].guarded, better);
        }
    }
    for (int g = 0; g < groups; g++) best[g].minimum = -s[g].best_low;
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
        const lane_mask larger_yet = gt(magnitude, largest);
        largest = pick(larger_yet, magnitude, largest);
        peak = pick(larger_yet, x[i], peak);
    }
    *empty = lt(largest, splat(RUN_EPSILON));
    return peak;
}

/* The codes of a fit_scale search, 0..2 half - 1. */
INLINE lane_i own_code(lane_f x, scale_fit fit, int half) {
    return pick_i(fit.empty, nearest(splat(0)), clamp(nearest(fit.inverse * x), -half, half - 1) + half);
}

/* The two sums that decide how good an inverse scale is: lx = sum_i w_i x_i code_i, l2 = sum_i w_i code_i^2. */
typedef struct {
    lane_f lx, l2;
} scale_sums;

INLINE void sum_codes(lane_f (*x)[MAX_RUN], lane_f (*w)[MAX_RUN], lane_f (*wx)[MAX_RUN], int groups, int n, int half,
                      bool moderate, const lane_f *inverse, scale_sums *sums) {
    lane_f lx[GROUPS], l2[GROUPS];
    for (int g = 0; g < groups; g++) lx[g] = l2[g] = splat(0);
    for (int i = 0; i < n; i++) {
        for (int g = 0; g < groups; g++) {
            const lane_f v = inverse[g] * x[g][i];
            const lane_f code =
                moderate ? nearest_moderate(within(v, -half, half - 1)) : within(nearest_float(v), -half, half - 1);
            lx[g] += wx[g][i] * code;
            l2[g] += w[g][i] * code * code;
        }
    }
    for (int g = 0; g < groups; g++) sums[g] = (scale_sums){lx[g], l2[g]};
}

/* make_qx_quants: minimise sum_i w_i (scale * code_i - x_i)^2, which for given codes means scale = lx / l2 and the
 * largest lx^2 / l2, over the inverse scales -(half + k / 10) / peak, k = 0, then -9..-1, 1..9. Where values are finite
 * all |inverse * x| <= half + 1, but in empty runs, whose codes do not matter. A block's scales need not be finite. */
INLINE void fit_scale(lane_f (*x)[MAX_RUN], lane_f (*w)[MAX_RUN], int groups, int n, int half, scale_fit *best) {
    const lane_f zero = splat(0);
    lane_f wx[GROUPS][MAX_RUN], peak[GROUPS], inverse[GROUPS], best_score[GROUPS];
    scale_sums sum[GROUPS];
    bool finite = true;
    for (int g = 0; g < groups; g++) {
        lane_f zeros = zero;
        for (int i = 0; i < n; i++) {
            wx[g][i] = w[g][i] * x[g][i];
            zeros += 0.0f * x[g][i];
        }
        finite &= all(eq(zeros, zero));
        peak[g] = find_peak(x[g], n, &best[g].empty);
        best[g].inverse = inverse[g] = (float)-half / peak[g];
    }
    sum_codes(x, w, wx, groups, n, half, false, inverse, sum);
    for (int g = 0; g < groups; g++) {
        best[g].scale = pick(eq(sum[g].l2, zero), zero, sum[g].lx / sum[g].l2);
        best_score[g] = best[g].scale * sum[g].lx;
    }
    for (int k = -9; k <= 9; k++) {
        if (k == 0) continue;
        for (int g = 0; g < groups; g++) inverse[g] = -((float)half + 0.1f * (float)k) / peak[g];
        if (finite)
            sum_codes(x, w, wx, groups, n, half, true, inverse, sum);
        else
            sum_codes(x, w, wx, groups, n, half, false, inverse, sum);
        for (int g = 0; g < groups; g++) {
            const lane_f lx = sum[g].lx, l2 = sum[g].l2;
            const lane_mask better = both(gt(l2, zero), gt(lx * lx, best_score[g] * l2));
            best[g].scale = pick(better, lx / l2, best[g].scale);
            best[g].inverse = pick(better, inverse[g], best[g].inverse);
            best_score[g] = pick(better, best[g].scale * lx, best_score[g]);
        }
    }
    for (int g = 0; g < groups; g++) best[g].scale = pick(best[g].empty, zero, best[g].scale);
}

/* make_q3_quants: the same objective with w_i = x_i^2, from the plain inverse scale on by moving one code at a time,
 * at most five times through the run. code[i] - half is the code; an empty run has code 0. ggml ends after a round that
 * moved nothing; n steps in a row that moved nothing are the same, wherever they began. In about nine steps of
 * ten no lane of a group wants to move, so a branch leaves the rest of the step out. */
INLINE void descend_scale(lane_f (*x)[MAX_RUN], int groups, int n, int half, lane_i (*code)[MAX_RUN], lane_f *scale) {
    const lane_f zero = splat(0);
    lane_f level[GROUPS][MAX_RUN];                           /* each code, as a float */
    lane_f own_lx[GROUPS][MAX_RUN], own_l2[GROUPS][MAX_RUN]; /* what it adds to the sums */
    lane_f sum_lx[GROUPS], sum_l2[GROUPS];
    lane_mask empty[GROUPS];
    for (int g = 0; g < groups; g++) {
        const lane_f inverse = (float)-half / find_peak(x[g], n, &empty[g]);
        sum_lx[g] = sum_l2[g] = zero;
        for (int i = 0; i < n; i++) {
            const lane_f w = x[g][i] * x[g][i];
            level[g][i] = within(nearest_float(inverse * x[g][i]), -half, half - 1);
            own_lx[g][i] = w * x[g][i] * level[g][i];
            own_l2[g][i] = w * level[g][i] * level[g][i];
            sum_lx[g] += own_lx[g][i];
            sum_l2[g] += own_l2[g][i];
        }
    }
    for (int step = 0, unmoved = 0; step < 5 * n && unmoved < n; step++) {
        const int i = step % n;
        lane_f rest_lx[GROUPS], rest_l2[GROUPS], to[GROUPS];
        lane_mask better[GROUPS];
        unmoved++;
        for (int g = 0; g < groups; g++) {
            rest_lx[g] = sum_lx[g] - own_lx[g][i];
            rest_l2[g] = sum_l2[g] - own_l2[g][i];
            to[g] = within(nearest_float(x[g][i] * rest_l2[g] / rest_lx[g]), -half, half - 1);
            better[g] = both(not_eq (to[g], level[g][i]), gt(rest_lx[g], zero));
        }
        for (int g = 0; g < groups; g++) {
            if (!any(better[g])) continue;
            const lane_f w = x[g][i] * x[g][i], to_lx = w * x[g][i] * to[g], to_l2 = w * to[g] * to[g];
            const lane_f lx = rest_lx[g] + to_lx, l2 = rest_l2[g] + to_l2;
            better[g] = both(better[g], both(gt(l2, zero), gt(lx * lx * sum_l2[g], sum_lx[g] * sum_lx[g] * l2)));
            level[g][i] = pick(better[g], to[g], level[g][i]);
            own_lx[g][i] = pick(better[g], to_lx, own_lx[g][i]);
            own_l2[g][i] = pick(better[g], to_l2, own_l2[g][i]);
            sum_lx[g] = pick(better[g], lx, sum_lx[g]);
            sum_l2[g] = pick(better[g], l2, sum_l2[g]);
            if (any(better[g])) unmoved = 0;
        }
    }
    for (int g = 0; g < groups; g++) {
        for (int i = 0; i < n; i++) code[g][i] = pick_i(empty[g], nearest(zero), nearest(level[g][i]) + half);
        scale[g] = pick(empty[g], zero, pick(gt(sum_l2[g], zero), sum_lx[g] / sum_l2[g], zero));
    }
}

/* make_qp_quants: x ~ unit * code, code 0..max_code, for the scales or minima of one block in each lane.
 * First the inverse scale (max_code + k / 10) / max, k = 0, then -4..-1, 1..4, with the least sum w (x - scale code)^2,
 * then moving one code at a time as above. Codes are bytes: what is negative wraps, as ggml's do. */
INLINE void fit_positive(lane_f (*x)[MAX_RUN], lane_f (*w)[MAX_RUN], int groups, int n, int max_code,
                         lane_i (*code)[MAX_RUN], lane_f *unit) {
    const lane_f zero = splat(0);
    lane_f max[GROUPS], inverse[GROUPS], best_error[GROUPS], sum_lx[GROUPS], sum_l2[GROUPS];
    for (int g = 0; g < groups; g++) {
        max[g] = best_error[g] = zero;
        for (int i = 0; i < n; i++) max[g] = larger(max[g], x[g][i]);
        inverse[g] = (float)max_code / max[g];
        const lane_f scale = 1.0f / inverse[g];
        for (int i = 0; i < n; i++) {
            const lane_f diff = x[g][i] - scale * to_float(nearest(inverse[g] * x[g][i]) & 255);
            best_error[g] += w[g][i] * diff * diff;
        }
    }
    for (int k = -4; k <= 4; k++) {
        if (k == 0) continue;
        for (int g = 0; g < groups; g++) {
            const lane_f other = (0.1f * (float)k + (float)max_code) / max[g], other_scale = 1.0f / other;
            lane_f error = zero;
            for (int i = 0; i < n; i++) {
                const lane_f diff = x[g][i] - other_scale * to_float(at_most(nearest(other * x[g][i]), max_code));
                error += w[g][i] * diff * diff;
            }
            const lane_mask better = lt(error, best_error[g]);
            best_error[g] = pick(better, error, best_error[g]);
            inverse[g] = pick(better, other, inverse[g]);
        }
    }
    for (int g = 0; g < groups; g++) {
        sum_lx[g] = sum_l2[g] = zero;
        for (int i = 0; i < n; i++) {
            const lane_i l = at_most(nearest(inverse[g] * x[g][i]), max_code);
            code[g][i] = l & 255;
            sum_lx[g] += w[g][i] * x[g][i] * to_float(l);
            sum_l2[g] += w[g][i] * to_float(l) * to_float(l);
        }
    }
    for (int round = 0; round < 5; round++) {
        lane_mask changed = lt(zero, zero);
        for (int i = 0; i < n; i++) {
            for (int g = 0; g < groups; g++) {
                const lane_f wx = w[g][i] * x[g][i], from = to_float(code[g][i]);
                const lane_f rest_lx = sum_lx[g] - wx * from;
                const lane_f rest_l2 = sum_l2[g] - w[g][i] * from * from;
                const lane_i moved = at_most(nearest(x[g][i] * rest_l2 / rest_lx), max_code);
                const lane_f to = to_float(moved);
                const lane_f lx = rest_lx + wx * to, l2 = rest_l2 + w[g][i] * to * to;
                lane_mask better = both(not_eq (to, from), both(gt(rest_lx, zero), gt(rest_l2, zero)));
                better = both(better, gt(lx * lx * sum_l2[g], sum_lx[g] * sum_lx[g] * l2));
                code[g][i] = pick_i(better, moved & 255, code[g][i]);
                sum_lx[g] = pick(better, lx, sum_lx[g]);
                sum_l2[g] = pick(better, l2, sum_l2[g]);
                changed = either(changed, better);
            }
        }
        if (!any(changed)) break;
    }
    for (int g = 0; g < groups; g++) {
        const lane_mask empty = lt(max[g], splat(RUN_EPSILON));
        for (int i = 0; i < n; i++) code[g][i] = pick_i(empty, nearest(zero), code[g][i]);
        unit[g] = pick(empty, zero, pick(gt(sum_l2[g], zero), sum_lx[g] / sum_l2[g], zero));
    }
}
