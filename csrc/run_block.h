/* run_block.h: what Q4_0, Q4_1, Q5_0 and Q5_1 share: a block is one run of 32 weights with one scale, and one lane.
 * Their codes are 4 or 5 bits:
 *
 *     high   bit 4 of q[i] << i of a little-endian 32-bit number    i = 0..31; only where codes have 5 bits
 *     low    q[i] bits 0..3 | q[16 + i] bits 0..3 << 4              i = 0..15
 */

/* False where 1 / d overflows in some lane: its d is a denormal. */
INLINE bool all_finite(lane_f inverse) { return !any(gt(absolute(inverse), splat(FLT_MAX))); }

/* A float in 0..255 cut to its integer part; anything else, which only an infinite inverse gives, becomes 0, as what
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
    const bool is_finite = all_finite(inverse);
    for (int i = 0; i < BLOCK_32; i++) {
        const lane_f v = x[i] * inverse + ((float)half + 0.5f);
        q[i] = at_most(is_finite ? truncated(v) : cut(v), 2 * half - 1);
    }
    return d;
}

/* d * q + m from the least to the greatest value. Returns d. */
INLINE lane_f fit_range(const lane_f *x, int max_code, lane_i *q, lane_f *m) {
    lane_f low = x[0], high = x[0];
    for (int i = 1; i < BLOCK_32; i++) {
        low = smaller(x[i], low);
        high = larger(x[i], high);
    }
    const lane_f d = (high - low) / (float)max_code;
    const lane_f inverse = pick(eq(d, splat(0)), d, 1.0f / d);
    const bool is_finite = all_finite(inverse);
    for (int i = 0; i < BLOCK_32; i++) {
        const lane_f v = (x[i] - low) * inverse + 0.5f;
        q[i] = is_finite ? truncated(v) : at_most(cut(v), max_code); /* v < max_code + 1 where all is finite */
    }
    *m = low;
    return d;
}

/* The fields of LANES blocks, low as four numbers of four bytes. m stays unset where the type has none. */
typedef struct {
    uint16_t d[LANES], m[LANES];
    uint32_t high[LANES], low[4][LANES];
} run_chunk;

/* Four codes as the bytes of a number, the first the lowest. */
INLINE lane_u four_codes(const lane_i *q) {
    return (lane_u)q[0] | (lane_u)q[1] << 8 | (lane_u)q[2] << 16 | (lane_u)q[3] << 24;
}

INLINE void pack_codes(const lane_i *q, run_chunk *out) {
    lane_u high = {0};
    for (int i = 0; i < BLOCK_32; i++) high |= (lane_u)(q[i] >> 4) << i;
    store_u(out->high, high);
    for (int word = 0; word < 4; word++) {
        const lane_u first = four_codes(q + 4 * word), second = four_codes(q + 16 + 4 * word);
        store_u(out->low[word], (first & 0x0f0f0f0f) | (second & 0x0f0f0f0f) << 4);
    }
}

INLINE void pack_f16(lane_f x, uint16_t *halves) {
    float values[LANES];
    store(values, x);
    f16s_from_f32s(values, LANES, (uint8_t *)halves);
}

INLINE void put_low(const run_chunk *s, int block, uint8_t *out) {
    for (int word = 0; word < 4; word++) put_u32(out + 4 * word, s->low[word][block]);
}

/* The same of one block. */
INLINE void put_low_codes(const uint8_t *q, uint8_t *out) {
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)((q[i] & 15) | (q[16 + i] & 15) << 4);
}

INLINE void put_high_codes(const uint8_t *q, uint8_t *out) {
    uint32_t high = 0;
    for (int i = 0; i < BLOCK_32; i++) high |= (uint32_t)(q[i] >> 4) << i;
    put_u32(out, high);
}

/* The one step and offset of a block: d alone, or d and m. */
static void scale_of_symmetric(const uint8_t *block, float *step, float *offset) {
    *step = f32_from_f16(get_u16(block));
    *offset = 0;
}

static void scale_of_range(const uint8_t *block, float *step, float *offset) {
    *step = f32_from_f16(get_u16(block));
    *offset = -f32_from_f16(get_u16(block + 2));
}

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
            pack_f16(fit[g].scale, out[g].d);
        } else {
            pack_f16(fit_peak(x[g], half, q), out[g].d);
        }
        pack_codes(q, &out[g]);
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
            pack_f16(fit[g].scale, out[g].d);
            m = -fit[g].minimum;
        } else {
            pack_f16(fit_range(x[g], max_code, q, &m), out[g].d);
        }
        pack_f16(m, out[g].m);
        pack_codes(q, &out[g]);
    }
}
