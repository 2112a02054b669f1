/* run_block.h: what Q4_0, Q4_1, Q5_0 and Q5_1 share: a block is one run of 32 weights with one scale, and one lane.
 * Their codes are 4 or 5 bits:
 *
 *     high   bit 4 of q[i] << i of a little-endian 32-bit number    i = 0..31; only where codes have 5 bits
 *     low    q[i] bits 0..3 | q[16 + i] bits 0..3 << 4              i = 0..15
 */

/* A float in 0..255 cut to its integer part; anything else, which only a block of denormals gives, becomes 0, as what
 * the x86 conversion makes of it does when cut to a byte. */
INLINE lane_i cut(lane_f v) {
    const lane_mask sound = both(lt(v, splat(256)), gt(v, splat(-1)));
    return truncated(pick(sound, v, splat(0)));
}

/* x * (q - half): the value of largest magnitude becomes -half. Returns d. */
INLINE lane_f fit_peak(const lane_f *x, int half, lane_i *q) {
    lane_mask empty;
    const lane_f d = find_peak(x, BLOCK_32, &empty) / (float)-half;
    const lane_f inverse = pick(eq(d, splat(0)), d, 1.0f / d);
    for (int i = 0; i < BLOCK_32; i++) q[i] = at_most(cut(x[i] * inverse + ((float)half + 0.5f)), 2 * half - 1);
    return d;
}

/* d * q + m from the least to the greatest value. Returns d. */
INLINE lane_f fit_range(const lane_f *x, int max_code, lane_i *q, lane_f *m) {
    lane_f low = x[0], high = x[0];
    for (int i = 1; i < BLOCK_32; i++) {
        low = pick(lt(x[i], low), x[i], low);
        high = pick(gt(x[i], high), x[i], high);
    }
    const lane_f d = (high - low) / (float)max_code;
    const lane_f inverse = pick(eq(d, splat(0)), d, 1.0f / d);
    for (int i = 0; i < BLOCK_32; i++) q[i] = at_most(cut((x[i] - low) * inverse + 0.5f), max_code);
    *m = low;
    return d;
}

/* The weight of each value where there is importance: importance * sqrt(mean square of the row + x^2). */
INLINE void load_weights(chunk c, const lane_f *x, lane_f *w) {
    const lane_f offset = load(c.mean_square);
    load_runs(c.importance, BLOCK_32, w);
    for (int i = 0; i < BLOCK_32; i++) w[i] *= root(offset + x[i] * x[i]);
}

/* The codes and scales of LANES blocks. m stays unset where the type has none. */
typedef struct {
    float d[LANES], m[LANES];
    uint8_t q[LANES * BLOCK_32];
} run_chunk;

/* Q4_0, Q5_0: x = d * (q - half). */
INLINE void encode_symmetric_chunk(chunk c, int half, run_chunk *out) {
    lane_f x[BLOCK_32];
    lane_i q[BLOCK_32];
    load_runs(c.x, BLOCK_32, x);
    if (c.importance) {
        lane_f w[BLOCK_32];
        load_weights(c, x, w);
        const scale_fit fit = fit_scale(x, w, BLOCK_32, half);
        for (int i = 0; i < BLOCK_32; i++)
            q[i] = pick_i(fit.empty, nearest(splat(0)), clamp(nearest(fit.inverse * x[i]), -half, half - 1) + half);
        store(out->d, fit.scale);
    } else {
        store(out->d, fit_peak(x, half, q));
    }
    store_code_runs(out->q, BLOCK_32, q);
}

/* Q4_1, Q5_1: x = d * q + m. */
INLINE void encode_range_chunk(chunk c, int max_code, run_chunk *out) {
    static const scale_min_search search = {.first = -0.9f, .step = 0.05f, .last = 36, .guarded = true};
    lane_f x[BLOCK_32], m;
    lane_i q[BLOCK_32];
    load_runs(c.x, BLOCK_32, x);
    if (c.importance) {
        lane_f w[BLOCK_32];
        load_weights(c, x, w);
        const scale_min_fit fit = fit_scale_min(x, w, BLOCK_32, max_code, search);
        for (int i = 0; i < BLOCK_32; i++)
            q[i] = pick_i(fit.guarded, code_of(x[i], fit.inverse, fit.origin, max_code, true),
                          code_of(x[i], fit.inverse, fit.origin, max_code, false));
        store(out->d, fit.scale);
        m = -fit.minimum;
    } else {
        store(out->d, fit_range(x, max_code, q, &m));
    }
    store(out->m, m);
    store_code_runs(out->q, BLOCK_32, q);
}

INLINE void pack_low(const uint8_t *q, uint8_t *out) {
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)((q[i] & 15) | q[16 + i] << 4);
}

INLINE void pack_high(const uint8_t *q, uint8_t *out) {
    for (int byte = 0; byte < 4; byte++) {
        unsigned high = 0;
        for (int bit = 0; bit < 8; bit++) high |= (unsigned)(q[8 * byte + bit] >> 4) << bit;
        out[byte] = (uint8_t)high;
    }
}

INLINE int code_at(const uint8_t *low, int i) { return low[i % 16] >> i / 16 * 4 & 15; }
INLINE int high_bit_at(const uint8_t *high, int i) { return (high[i / 8] >> i % 8 & 1) << 4; }
