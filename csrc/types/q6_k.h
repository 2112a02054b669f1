/* Q6_K: 256 weights in 16 runs of 16, x = d * scale[r] * (q - 32), q 0..63.
 *
 *     byte  0..127     q[128 h + 32 p + i] bits 0..3 | q[128 h + 64 + 32 p + i] bits 0..3 << 4
 *                      h = 0..1, p = 0..1, i = 0..31: byte 64 h + 32 p + i
 *           128..191   bits 4..5 of q[128 h + 32 p + i] << 2 p, p = 0..3: byte 128 + 32 h + i
 *           192..207   scale[r]   int8, r = 0..15
 *           208..209   d          float16
 */
enum {
    Q6_K_BYTES = 210,
    Q6_K_RUN = 16,
    Q6_K_RUNS = 16,
    Q6_K_PASSES = Q6_K_RUNS / LANES,
};

/* Write d and the 8-bit scales for the 16 fitted ones, and put in their place what they decode to.
 * Returns false for a block of nothing but empty runs, which is all zero bytes. */
static inline bool pack_q6_k_scales(float *scale, uint8_t *out) {
    float largest = 0, peak = 0;
    for (int r = 0; r < Q6_K_RUNS; r++) {
        if (fabsf(scale[r]) > largest) {
            largest = fabsf(scale[r]);
            peak = scale[r];
        }
    }
    if (largest < RUN_EPSILON) return false;
    const float inverse = -128.0f / peak;
    put_u16(out + 208, f16_from_f32(1.0f / inverse)); /* not peak / -128: that rounds otherwise once in 150,000 */
    const float d = f32_from_f16(get_u16(out + 208));
    for (int r = 0; r < Q6_K_RUNS; r++) {
        const int32_t code = nearest_int(inverse * scale[r]);
        const int8_t packed = (int8_t)(code > 127 ? 127 : code);
        out[192 + r] = (uint8_t)packed;
        scale[r] = d * packed;
    }
    return true;
}

static inline void pack_q6_k_codes(const uint8_t *code, uint8_t *out) {
    for (int h = 0; h < 2; h++) {
        const uint8_t *q = code + 128 * h;
        for (int i = 0; i < 64; i++) out[64 * h + i] = (uint8_t)((q[i] & 15) | (q[64 + i] & 15) << 4);
        for (int i = 0; i < 32; i++)
            out[128 + 32 * h + i] =
                (uint8_t)(q[i] >> 4 | q[32 + i] >> 4 << 2 | q[64 + i] >> 4 << 4 | q[96 + i] >> 4 << 6);
    }
}

static inline void encode_q6_k_block(const float *x, uint8_t *out) {
    lane_f runs[Q6_K_PASSES][Q6_K_RUN];
    scale_fit fit[Q6_K_PASSES];
    float scale[Q6_K_RUNS];
    for (int pass = 0; pass < Q6_K_PASSES; pass++) {
        lane_f *v = runs[pass], weight[Q6_K_RUN];
        load_runs(x + pass * LANES * Q6_K_RUN, Q6_K_RUN, v);
        for (int i = 0; i < Q6_K_RUN; i++) weight[i] = v[i] * v[i];
        fit[pass] = fit_scale(v, weight, Q6_K_RUN, 32);
        store(scale + pass * LANES, fit[pass].scale);
    }
    if (!pack_q6_k_scales(scale, out)) {
        memset(out, 0, Q6_K_BYTES);
        return;
    }
    uint8_t code[BLOCK];
    for (int pass = 0; pass < Q6_K_PASSES; pass++) {
        const lane_f *v = runs[pass];
        const lane_f step = load(scale + pass * LANES);
        const lane_mask lost = eq(step, splat(0));
        lane_i q[Q6_K_RUN];
        for (int i = 0; i < Q6_K_RUN; i++) q[i] = clamp(nearest(v[i] / step), -32, 31) + 32;
        if (any(lost)) {
            const lane_i none = nearest(splat(0));
            for (int i = 0; i < Q6_K_RUN; i++) {
                const lane_i own = clamp(nearest(fit[pass].inverse * v[i]), -32, 31) + 32;
                q[i] = pick_i(lost, pick_i(fit[pass].empty, none, own), q[i]);
            }
        }
        store_code_runs(code + pass * LANES * Q6_K_RUN, Q6_K_RUN, q);
    }
    pack_q6_k_codes(code, out);
}

static void encode_q6_k(const float *x, int64_t n_blocks, uint8_t *out) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK, out += Q6_K_BYTES) encode_q6_k_block(x, out);
}

static void decode_q6_k(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK, in += Q6_K_BYTES) {
        const float d = f32_from_f16(get_u16(in + 208));
        for (int r = 0; r < Q6_K_RUNS; r++) {
            const float step = d * (float)(int8_t)in[192 + r];
            const int h = r / 8, p = r / 2 % 4, half_run = r % 2 * 16;
            const uint8_t *low = in + 64 * h + p % 2 * 32 + half_run, *high = in + 128 + 32 * h + half_run;
            for (int i = 0; i < Q6_K_RUN; i++) {
                const int q = (low[i] >> p / 2 * 4 & 15) | (high[i] >> 2 * p & 3) << 4;
                x[r * Q6_K_RUN + i] = step * (float)(q - 32);
            }
        }
    }
}
