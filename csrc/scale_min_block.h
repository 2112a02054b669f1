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

/* What the first stage leaves: the fit of every pass, and for each block and run, scale, minimum and summed weight. */
typedef struct {
    scale_min_fit fit[MAX_RUNS]; /* LANES blocks of `runs` runs are `runs` passes of LANES runs */
    float scale[LANES * MAX_RUNS], min[LANES * MAX_RUNS], sum_w[LANES * MAX_RUNS];
} scale_min_runs;

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

/* The same for the scales and the minima of every block of the chunk, fitted to the runs' summed weights. */
INLINE void fitted_codes(const scale_min_runs *fitted, int runs, int max_code, scale_min_chunk *out,
                         uint8_t *scale_code, uint8_t *min_code) {
    lane_f v[2][MAX_RUN], w[2][MAX_RUN], unit[2];
    lane_i code[2][MAX_RUN];
    for (int r = 0; r < runs; r++) {
        v[0][r] = gather(fitted->scale, r, runs);
        v[1][r] = gather(fitted->min, r, runs);
        w[0][r] = w[1][r] = gather(fitted->sum_w, r, runs);
    }
    fit_positive(v, w, 2, runs, max_code, code, unit);
    float units[LANES], min_units[LANES];
    store(units, unit[0]);
    store(min_units, unit[1]);
    for (int b = 0; b < LANES; b++) {
        out->d[b] = f16_from_f32(units[b]);
        out->dmin[b] = f16_from_f32(min_units[b]);
    }
    for (int r = 0; r < runs; r++) {
        int32_t lane[LANES], min_lane[LANES];
        store_i(lane, code[0][r]);
        store_i(min_lane, code[1][r]);
        for (int b = 0; b < LANES; b++) {
            scale_code[b * runs + r] = (uint8_t)lane[b];
            min_code[b * runs + r] = (uint8_t)min_lane[b];
        }
    }
}

INLINE void load_plain_weights(const lane_f *x, int n, plain_weight weight, lane_f *w) {
    lane_f rms = splat(0);
    if (weight == BY_RMS_AND_MAGNITUDE) {
        for (int i = 0; i < n; i++) rms += x[i] * x[i];
        rms = root(rms / (float)n);
    }
    for (int i = 0; i < n; i++) w[i] = rms + absolute(x[i]);
}

INLINE void fit_runs(scale_min_kind kind, chunk c, bool weighted, scale_min_runs *out) {
    const int n = kind.run, runs = kind.runs;
    float energy[LANES] = {0};
    if (weighted) store(energy, kind.energy * sum_of_squares(c.x, BLOCK_256) / (float)BLOCK_256);
    for (int pass = 0; pass < runs; pass += GROUPS) {
        lane_f x[GROUPS][MAX_RUN], w[GROUPS][MAX_RUN];
        for (int g = 0; g < GROUPS; g++) {
            const int first = (pass + g) * LANES;
            load_runs(c.x + first * n, n, x[g]);
            if (weighted) {
                const lane_f offset = spread(energy, pass + g, runs);
                store(out->sum_w + first, load_weights(c.importance + first * n, x[g], n, offset, w[g]));
            } else {
                load_plain_weights(x[g], n, kind.weight, w[g]);
            }
        }
        fit_scale_min(x, w, GROUPS, n, kind.max_code, weighted ? kind.weighted : kind.plain, out->fit + pass);
        for (int g = 0; g < GROUPS; g++) {
            store(out->scale + (pass + g) * LANES, out->fit[pass + g].scale);
            store(out->min + (pass + g) * LANES, out->fit[pass + g].minimum);
        }
    }
}

INLINE void encode_scale_min_chunk(scale_min_kind kind, chunk c, scale_min_chunk *out) {
    const int n = kind.run, runs = kind.runs;
    scale_min_runs fitted;
    float *scale = fitted.scale, *min = fitted.min;
    uint8_t scale_code[LANES * MAX_RUNS], min_code[LANES * MAX_RUNS];
    if (c.importance) {
        fit_runs(kind, c, true, &fitted);
        fitted_codes(&fitted, runs, kind.max_scale, out, scale_code, min_code);
    } else {
        fit_runs(kind, c, false, &fitted);
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
        if (any(lost))
            for (int i = 0; i < n; i++)
                q[i] = pick_i(lost, own_scale_min_code(x[i], fitted.fit[pass], kind.max_code), q[i]);
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

static void scales_head(const uint8_t *block, float *step, float *offset) {
    const float d = f32_from_f16(get_u16(block)), dmin = f32_from_f16(get_u16(block + 2));
    uint8_t scale[8], min[8];
    unpack_six_bits(block + 4, scale, min);
    for (int r = 0; r < 8; r++) {
        step[r] = d * scale[r];
        offset[r] = dmin * min[r];
    }
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
