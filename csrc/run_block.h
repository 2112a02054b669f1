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

/* The codes and scales of LANES blocks. m stays unset where the type has none. */
typedef struct {
    float d[LANES], m[LANES];
    uint8_t q[LANES * BLOCK_32];
} run_chunk;

/* The runs of a chunk, and their weights where there is importance. */
INLINE void load_chunk(chunk c, lane_f (*x)[MAX_RUN], lane_f (*w)[MAX_RUN]) {
    for (int g = 0; g < GROUPS; g++) {
        const int first = g * LANES;
        load_runs(c.x + first * BLOCK_32, BLOCK_32, x[g]);
        if (c.importance)
            load_weights(c.importance + first * BLOCK_32, x[g], BLOCK_32, load(c.mean_square + first), w[g]);
    }
}

/* Q4_0, Q5_0: x = d * (q - half). out has an entry for each group of LANES blocks. */
INLINE void encode_symmetric_chunk(chunk c, int half, run_chunk *out) {
    lane_f x[GROUPS][MAX_RUN], w[GROUPS][MAX_RUN];
    scale_fit fit[GROUPS];
    load_chunk(c, x, w);
    if (c.importance) fit_scale(x, w, GROUPS, BLOCK_32, half, fit);
    for (int g = 0; g < GROUPS; g++) {
        lane_i q[BLOCK_32];
        if (c.importance) {
            for (int i = 0; i < BLOCK_32; i++) q[i] = own_code(x[g][i], fit[g], half);
            store(out[g].d, fit[g].scale);
        } else {
            store(out[g].d, fit_peak(x[g], half, q));
        }
        store_code_runs(out[g].q, BLOCK_32, q);
    }
}

/* Q4_1, Q5_1: x = d * q + m. Likewise. */
INLINE void encode_range_chunk(chunk c, int max_code, run_chunk *out) {
    static const scale_min_search search = {.first = -0.9f, .step = 0.05f, .last = 36, .guarded = true};
    lane_f x[GROUPS][MAX_RUN], w[GROUPS][MAX_RUN];
    scale_min_fit fit[GROUPS];
    load_chunk(c, x, w);
    if (c.importance) fit_scale_min(x, w, GROUPS, BLOCK_32, max_code, search, fit);
    for (int g = 0; g < GROUPS; g++) {
        lane_i q[BLOCK_32];
        lane_f m;
        if (c.importance) {
            for (int i = 0; i < BLOCK_32; i++) q[i] = own_scale_min_code(x[g][i], fit[g], max_code);
            store(out[g].d, fit[g].scale);
            m = -fit[g].minimum;
        } else {
            store(out[g].d, fit_range(x[g], max_code, q, &m));
        }
        store(out[g].m, m);
        store_code_runs(out[g].q, BLOCK_32, q);
    }
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
