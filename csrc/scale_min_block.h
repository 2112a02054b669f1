/* scale_min_block.h: what Q2_K, Q4_K and Q5_K share: 256 weights in runs, x = d * scale[r] * q - dmin * min[r].
 * A chunk of LANES blocks goes through three stages: every run is fitted, each block's scales and minima are made codes
 * of one float16 unit each, and every run is coded against its packed scale.
 */
enum { MAX_RUNS = 16 };

typedef enum { BY_MAGNITUDE, BY_RMS_AND_MAGNITUDE } plain_weight;

typedef struct {
    int run, runs;           /* weights in a run, runs in a block */
    int max_code, max_scale; /* largest q, and largest scale and min */
    bool saturates[2];       /* whether larger codes of scales become max_scale, without and with importance; else their
                                bits run into each other in `pack_scales` */
    plain_weight weight;     /* of a weight x without importance: |x|, or the run's rms + |x| */
    float energy;            /* with importance: importance * sqrt(energy * mean square of the block + x^2) */
    scale_min_search plain, weighted;
    void (*pack_scales)(const uint8_t *scale, const uint8_t *min, uint8_t *out);
    void (*unpack_scales)(const uint8_t *in, uint8_t *scale, uint8_t *min);
} scale_min_kind;

typedef struct {
    uint16_t d[LANES], dmin[LANES];
    uint8_t scales[LANES][MAX_RUNS]; /* as pack_scales leaves them */
    uint8_t q[LANES * BLOCK_256];
} scale_min_chunk;

/* One block's values as multiples of a float16 unit: the largest becomes max_code. Codes are bytes: what is out of
 * range wraps, as ggml's conversion does. */
static uint16_t plain_codes(const float *values, int n, int max_code, uint8_t *codes) {
    float largest = 0;
    for (int r = 0; r < n; r++)
        if (values[r] > largest) largest = values[r];
    const float inverse = largest > 0 ? (float)max_code / largest : 0.0f;
    for (int r = 0; r < n; r++) codes[r] = (uint8_t)nearest_int(inverse * values[r]);
    return f16_from_f32(largest / (float)max_code);
}

/* The same for every block of the chunk, fitted to the runs' summed weights. */
INLINE void fitted_codes(const float *values, const float *sum_w, int runs, int max_code, uint16_t *unit,
                         uint8_t *codes) {
    lane_f v[MAX_RUNS], w[MAX_RUNS];
    lane_i code[MAX_RUNS];
    for (int r = 0; r < runs; r++) {
        v[r] = gather(values, r, runs);
        w[r] = gather(sum_w, r, runs);
    }
    float units[LANES];
    store(units, fit_positive(v, w, runs, max_code, code));
    for (int b = 0; b < LANES; b++) unit[b] = f16_from_f32(units[b]);
    for (int r = 0; r < runs; r++) {
        int32_t lane[LANES];
        store_i(lane, code[r]);
        for (int b = 0; b < LANES; b++) codes[b * runs + r] = (uint8_t)lane[b];
    }
}

INLINE void encode_scale_min_chunk(scale_min_kind kind, chunk c, scale_min_chunk *out) {
    const int n = kind.run, runs = kind.runs;
    const scale_min_search search = c.importance ? kind.weighted : kind.plain;
    scale_min_fit fit[MAX_RUNS]; /* LANES blocks of `runs` runs are `runs` passes of LANES runs */
    float scale[LANES * MAX_RUNS], min[LANES * MAX_RUNS], sum_w[LANES * MAX_RUNS], energy[LANES] = {0};
    if (c.importance) store(energy, kind.energy * sum_of_squares(c.x, BLOCK_256) / (float)BLOCK_256);

    for (int pass = 0; pass < runs; pass++) {
        lane_f x[MAX_RUN], w[MAX_RUN];
        load_runs(c.x + pass * LANES * n, n, x);
        if (c.importance) {
            const lane_f offset = spread(energy, pass, runs);
            load_runs(c.importance + pass * LANES * n, n, w);
            lane_f sum = splat(0);
            for (int i = 0; i < n; i++) {
                w[i] *= root(offset + x[i] * x[i]);
                sum += w[i];
            }
            store(sum_w + pass * LANES, sum);
        } else {
            lane_f rms = splat(0);
            if (kind.weight == BY_RMS_AND_MAGNITUDE) {
                for (int i = 0; i < n; i++) rms += x[i] * x[i];
                rms = root(rms / (float)n);
            }
            for (int i = 0; i < n; i++) w[i] = rms + absolute(x[i]);
        }
        fit[pass] = fit_scale_min(x, w, n, kind.max_code, search);
        store(scale + pass * LANES, fit[pass].scale);
        store(min + pass * LANES, fit[pass].minimum);
    }

    uint8_t scale_code[LANES * MAX_RUNS], min_code[LANES * MAX_RUNS];
    if (c.importance) {
        fitted_codes(scale, sum_w, runs, kind.max_scale, out->d, scale_code);
        fitted_codes(min, sum_w, runs, kind.max_scale, out->dmin, min_code);
    } else {
        for (int b = 0; b < LANES; b++) {
            out->d[b] = plain_codes(scale + b * runs, runs, kind.max_scale, scale_code + b * runs);
            out->dmin[b] = plain_codes(min + b * runs, runs, kind.max_scale, min_code + b * runs);
        }
    }
    if (kind.saturates[c.importance != NULL]) {
        for (int i = 0; i < LANES * runs; i++) {
            if (scale_code[i] > kind.max_scale) scale_code[i] = (uint8_t)kind.max_scale;
            if (min_code[i] > kind.max_scale) min_code[i] = (uint8_t)kind.max_scale;
        }
    }
    for (int b = 0; b < LANES; b++) {
        uint8_t *of_scale = scale_code + b * runs, *of_min = min_code + b * runs;
        kind.pack_scales(of_scale, of_min, out->scales[b]);
        kind.unpack_scales(out->scales[b], of_scale, of_min);
        for (int r = 0; r < runs; r++) {
            scale[b * runs + r] = f32_from_f16(out->d[b]) * of_scale[r];
            min[b * runs + r] = f32_from_f16(out->dmin[b]) * of_min[r];
        }
    }

    for (int pass = 0; pass < runs; pass++) {
        lane_f x[MAX_RUN];
        lane_i q[MAX_RUN];
        load_runs(c.x + pass * LANES * n, n, x);
        const lane_f step = load(scale + pass * LANES), offset = load(min + pass * LANES);
        const lane_mask lost = eq(step, splat(0));
        for (int i = 0; i < n; i++) q[i] = clamp(nearest((x[i] + offset) / step), 0, kind.max_code);
        if (any(lost)) {
            for (int i = 0; i < n; i++) {
                lane_i own = code_of(x[i], fit[pass].inverse, fit[pass].origin, kind.max_code, false);
                if (search.guarded)
                    own = pick_i(fit[pass].guarded,
                                 code_of(x[i], fit[pass].inverse, fit[pass].origin, kind.max_code, true), own);
                q[i] = pick_i(lost, own, q[i]);
            }
        }
        store_code_runs(out->q + pass * LANES * n, n, q);
    }
}

/* Q4_K and Q5_K begin with
 *
 *     byte  0..1      d      float16
 *           2..3      dmin   float16
 *           4..7      scale[r] bits 0..5 | scale[r + 4] bits 4..5 << 6      r = 0..3
 *           8..11     min[r]   bits 0..5 | min[r + 4]   bits 4..5 << 6
 *           12..15    scale[r + 4] bits 0..3 | min[r + 4] bits 0..3 << 4
 */
enum { SIX_BITS_BYTES = 12 };

INLINE void pack_six_bits(const uint8_t *scale, const uint8_t *min, uint8_t *out) {
    for (int r = 0; r < 4; r++) {
        out[r] = (uint8_t)(scale[r] | scale[r + 4] >> 4 << 6);
        out[r + 4] = (uint8_t)(min[r] | min[r + 4] >> 4 << 6);
        out[r + 8] = (uint8_t)((scale[r + 4] & 15) | min[r + 4] << 4);
    }
}

/* Four bytes at a time, as one number. */
INLINE void unpack_six_bits(const uint8_t *in, uint8_t *scale, uint8_t *min) {
    const uint32_t scales = get_u32(in), mins = get_u32(in + 4), low = get_u32(in + 8);
    put_u32(scale, scales & 0x3f3f3f3f);
    put_u32(scale + 4, (low & 0x0f0f0f0f) | (scales >> 2 & 0x30303030));
    put_u32(min, mins & 0x3f3f3f3f);
    put_u32(min + 4, (low >> 4 & 0x0f0f0f0f) | (mins >> 2 & 0x30303030));
}

INLINE void pack_head(const scale_min_chunk *s, int block, uint8_t *out) {
    put_u16(out, s->d[block]);
    put_u16(out + 2, s->dmin[block]);
    memcpy(out + 4, s->scales[block], SIX_BITS_BYTES);
}

/* What the head of such a block means: step[r] = d * scale[r] and offset[8 + r] = dmin * min[r], r = 0..7. Both have 16
 * entries, for all codes are multiplied by both. Not INLINE: what lies in memory spreads over a vector's lanes as it
 * is loaded, what a compiler keeps in one vector it shuffles into every other. */
static void unpack_head(const uint8_t *in, float *step, float *offset) {
    const float d = f32_from_f16(get_u16(in)), dmin = f32_from_f16(get_u16(in + 2));
    uint8_t codes[16];
    unpack_six_bits(in + 4, codes, codes + 8);
    for (int r = 0; r < 16; r += LANES) {
        const lane_f code = to_float(load_u8(codes + r));
        store(step + r, d * code);
        store(offset + r, dmin * code);
    }
}
