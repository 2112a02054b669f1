/* Q4_K: 256 weights in 8 runs of 32, x = d * scale[r] * q - dmin * min[r].
 *
 *     byte  0..1      d      float16
 *           2..3      dmin   float16
 *           4..7      scale[r] low 6 bits | scale[r + 4] bits 4..5 << 6      r = 0..3
 *           8..11     min[r]   low 6 bits | min[r + 4]   bits 4..5 << 6
 *           12..15    scale[r + 4] bits 0..3 | min[r + 4] bits 0..3 << 4
 *           16..143   q[64 p + i] | q[64 p + 32 + i] << 4                    p = 0..3, i = 0..31: byte 16 + 32 p + i
 */
enum {
    Q4_K_WEIGHTS = 256,
    Q4_K_BYTES = 144,
    Q4_K_RUN = 32,
    Q4_K_RUNS = 8,
    Q4_K_GROUP = LANES > Q4_K_RUNS ? LANES / Q4_K_RUNS : 1, /* blocks whose runs fill the lanes */
    Q4_K_PASSES = Q4_K_GROUP * Q4_K_RUNS / LANES,
};

static const scale_min_search NAME(q4_k_search) = {.first = -1.0f, .step = 0.1f, .last = 20};

typedef struct {
    uint8_t scale[Q4_K_RUNS], min[Q4_K_RUNS];
} NAME(six_bit);

static inline void NAME(pack_six_bit)(const NAME(six_bit) * s, uint8_t *out) {
    for (int r = 0; r < 4; r++) {
        out[r] = (uint8_t)(s->scale[r] | s->scale[r + 4] >> 4 << 6);
        out[r + 4] = (uint8_t)(s->min[r] | s->min[r + 4] >> 4 << 6);
        out[r + 8] = (uint8_t)((s->scale[r + 4] & 15) | s->min[r + 4] << 4);
    }
}

static inline NAME(six_bit) NAME(unpack_six_bit)(const uint8_t *in) {
    NAME(six_bit) s;
    for (int r = 0; r < 4; r++) {
        s.scale[r] = in[r] & 63;
        s.min[r] = in[r + 4] & 63;
        s.scale[r + 4] = (uint8_t)((in[r + 8] & 15) | in[r] >> 6 << 4);
        s.min[r + 4] = (uint8_t)(in[r + 8] >> 4 | in[r + 4] >> 6 << 4);
    }
    return s;
}

/* v as a 6-bit multiple of 1 / inverse. Out of range it wraps like ggml's conversion to uint8_t, then saturates. */
static inline uint8_t NAME(six_bits)(float v, float inverse) {
    const uint8_t code = (uint8_t)nearest_int(inverse * v);
    return code > 63 ? 63 : code;
}

/* Write d, dmin and the 6-bit codes for the 8 fitted scales and minima, and put in their place what they decode to. */
static inline void NAME(pack_q4_k_scales)(float *scale, float *min, uint8_t *out) {
    float max_scale = 0, max_min = 0;
    for (int r = 0; r < Q4_K_RUNS; r++) {
        if (scale[r] > max_scale) max_scale = scale[r];
        if (min[r] > max_min) max_min = min[r];
    }
    const float inverse_scale = max_scale > 0 ? 63.0f / max_scale : 0.0f;
    const float inverse_min = max_min > 0 ? 63.0f / max_min : 0.0f;
    NAME(six_bit) s;
    for (int r = 0; r < Q4_K_RUNS; r++) {
        s.scale[r] = NAME(six_bits)(scale[r], inverse_scale);
        s.min[r] = NAME(six_bits)(min[r], inverse_min);
    }
    put_u16(out, f16_from_f32(max_scale / 63.0f));
    put_u16(out + 2, f16_from_f32(max_min / 63.0f));
    NAME(pack_six_bit)(&s, out + 4);
    const float d = f32_from_f16(get_u16(out)), dmin = f32_from_f16(get_u16(out + 2));
    for (int r = 0; r < Q4_K_RUNS; r++) {
        scale[r] = d * s.scale[r];
        min[r] = dmin * s.min[r];
    }
}

static inline void NAME(pack_q4_k_codes)(const uint8_t *code, uint8_t *out) {
    for (int p = 0; p < 4; p++)
        for (int i = 0; i < 32; i++) out[32 * p + i] = (uint8_t)(code[64 * p + i] | code[64 * p + 32 + i] << 4);
}

/* One group of blocks: fit every run, pack the scales of each block, code every run against its packed scale. */
static inline void NAME(encode_q4_k_group)(const float *x, uint8_t *out) {
    lane_f runs[Q4_K_PASSES][Q4_K_RUN];
    scale_min_fit fit[Q4_K_PASSES];
    float scale[Q4_K_GROUP * Q4_K_RUNS], min[Q4_K_GROUP * Q4_K_RUNS];
    for (int pass = 0; pass < Q4_K_PASSES; pass++) {
        lane_f *v = runs[pass], weight[Q4_K_RUN], sum_x2 = splat(0);
        load_runs(x + pass * LANES * Q4_K_RUN, Q4_K_RUN, v);
        for (int i = 0; i < Q4_K_RUN; i++) sum_x2 += v[i] * v[i];
        const lane_f rms = root(sum_x2 / 32.0f);
        for (int i = 0; i < Q4_K_RUN; i++) weight[i] = rms + absolute(v[i]);
        fit[pass] = fit_scale_min(v, weight, Q4_K_RUN, 15, NAME(q4_k_search));
        store(scale + pass * LANES, fit[pass].scale);
        store(min + pass * LANES, fit[pass].minimum);
    }
    for (int b = 0; b < Q4_K_GROUP; b++)
        NAME(pack_q4_k_scales)(scale + b * Q4_K_RUNS, min + b * Q4_K_RUNS, out + b * Q4_K_BYTES);

    uint8_t code[Q4_K_GROUP * Q4_K_WEIGHTS];
    for (int pass = 0; pass < Q4_K_PASSES; pass++) {
        const lane_f *v = runs[pass];
        const lane_f step = load(scale + pass * LANES), offset = load(min + pass * LANES);
        const lane_mask lost = eq(step, splat(0));
        lane_i q[Q4_K_RUN];
        for (int i = 0; i < Q4_K_RUN; i++) q[i] = clamp(nearest((v[i] + offset) / step), 0, 15);
        if (any(lost))
            for (int i = 0; i < Q4_K_RUN; i++)
                q[i] = pick_i(lost, code_of(v[i], fit[pass].inverse, fit[pass].origin, 15), q[i]);
        store_code_runs(code + pass * LANES * Q4_K_RUN, Q4_K_RUN, q);
    }
    for (int b = 0; b < Q4_K_GROUP; b++)
        NAME(pack_q4_k_codes)(code + b * Q4_K_WEIGHTS, out + b * Q4_K_BYTES + 16);
}

static void NAME(encode_q4_k)(const float *x, int64_t n_blocks, uint8_t *out) {
    for (; n_blocks >= Q4_K_GROUP; n_blocks -= Q4_K_GROUP) {
        NAME(encode_q4_k_group)(x, out);
        x += Q4_K_GROUP * Q4_K_WEIGHTS;
        out += Q4_K_GROUP * Q4_K_BYTES;
    }
    if (n_blocks > 0) {
        float padded[Q4_K_GROUP * Q4_K_WEIGHTS] = {0};
        uint8_t packed[Q4_K_GROUP * Q4_K_BYTES];
        memcpy(padded, x, (size_t)n_blocks * Q4_K_WEIGHTS * sizeof *x);
        NAME(encode_q4_k_group)(padded, packed);
        memcpy(out, packed, (size_t)n_blocks * Q4_K_BYTES);
    }
}

static void NAME(decode_q4_k)(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += Q4_K_WEIGHTS, in += Q4_K_BYTES) {
        const float d = f32_from_f16(get_u16(in)), dmin = f32_from_f16(get_u16(in + 2));
        const NAME(six_bit) s = NAME(unpack_six_bit)(in + 4);
        for (int r = 0; r < Q4_K_RUNS; r++) {
            const float step = d * s.scale[r], offset = dmin * s.min[r];
            const uint8_t *q = in + 16 + r / 2 * 32;
            const int shift = r % 2 * 4;
            for (int i = 0; i < Q4_K_RUN; i++) x[r * Q4_K_RUN + i] = step * (float)(q[i] >> shift & 15) - offset;
        }
    }
}
