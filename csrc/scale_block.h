/* scale_block.h: what Q3_K and Q6_K share: 256 weights in 16 runs of 16, x = d * scale[r] * (q - half), q 0..2 half
 * - 1. A chunk of LANES blocks goes through the stages of scale_min_block.h, without minima.
 */
typedef struct {
    uint16_t d[LANES];
    int8_t scale[LANES * 16];
    uint8_t q[LANES * BLOCK_256];
} scale_chunk;

/* Each block's 16 values as multiples -limit..limit - 1 of a float16 unit: the value of largest magnitude becomes
 * -limit. Where that magnitude is 0 or below `least`, the unit is 0 and every code `absent`. */
INLINE void peak_codes(const float *values, int limit, float least, int absent, scale_chunk *out) {
    lane_f x[16];
    lane_i code[16];
    lane_mask empty;
    load_runs(values, 16, x);
    const lane_f peak = find_peak(x, 16, &empty), inverse = (float)-limit / peak;
    empty = either(eq(peak, splat(0)), lt(absolute(peak), splat(least)));
    for (int r = 0; r < 16; r++) {
        const lane_i multiple = at_most(nearest(inverse * x[r]), limit - 1);
        code[r] = pick_i(empty, nearest(splat((float)absent)), multiple) & 255;
    }
    store_code_runs((uint8_t *)out->scale, 16, code);
    float unit[LANES]; /* not peak / -limit: that rounds otherwise once in 100,000 blocks */
    store(unit, pick(empty, splat(0), 1.0f / inverse));
    for (int b = 0; b < LANES; b++) out->d[b] = f16_from_f32(unit[b]);
}

/* Code every run against its packed scale. Where that is 0 the search's own codes stand: those of fit[pass], or where
 * fit is NULL those that are in out->q already. */
INLINE void code_against_scales(chunk c, int half, const scale_fit *fit, scale_chunk *out) {
    float step[LANES * 16];
    for (int i = 0; i < LANES * 16; i++) step[i] = f32_from_f16(out->d[i / 16]) * out->scale[i];
    for (int pass = 0; pass < 16; pass++) {
        uint8_t *q = out->q + pass * LANES * 16, own[LANES * 16];
        lane_f x[16];
        lane_i code[16];
        load_runs(c.x + pass * LANES * 16, 16, x);
        const lane_f scale = load(step + pass * LANES);
        const lane_mask lost = eq(scale, splat(0));
        for (int i = 0; i < 16; i++) code[i] = clamp(nearest(x[i] / scale), -half, half - 1) + half;
        if (!any(lost)) {
            store_code_runs(q, 16, code);
            continue;
        }
        memcpy(own, q, sizeof own);
        if (fit)
            for (int i = 0; i < 16; i++) code[i] = pick_i(lost, own_code(x[i], fit[pass], half), code[i]);
        store_code_runs(q, 16, code);
        for (int j = 0; j < LANES && !fit; j++)
            if (step[pass * LANES + j] == 0) memcpy(q + 16 * j, own + 16 * j, 16);
    }
}
