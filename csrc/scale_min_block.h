/* scale_min_block.h: what Q4_K and Q5_K share. 256 weights in 8 runs of 32, x = d * scale[r] * q - dmin * min[r];
 * scale and min are 6-bit, and a block begins with
 *
 *     byte  0..1      d      float16
 *           2..3      dmin   float16
 *           4..7      scale[r] bits 0..5 | scale[r + 4] bits 4..5 << 6      r = 0..3
 *           8..11     min[r]   bits 0..5 | min[r + 4]   bits 4..5 << 6
 *           12..15    scale[r + 4] bits 0..3 | min[r + 4] bits 0..3 << 4
 */
enum {
    BLOCK = 256,
    RUN = 32,
    RUNS = 8,
    GROUP = LANES > RUNS ? LANES / RUNS : 1, /* blocks whose runs fill the lanes */
    PASSES = GROUP * RUNS / LANES,
};

typedef struct {
    float d, dmin;
    uint8_t scale[RUNS], min[RUNS];
} block_scales;

static inline void pack_six_bits(const uint8_t *scale, const uint8_t *min, uint8_t *out) {
    for (int r = 0; r < 4; r++) {
        out[r] = (uint8_t)(scale[r] | scale[r + 4] >> 4 << 6);
        out[r + 4] = (uint8_t)(min[r] | min[r + 4] >> 4 << 6);
        out[r + 8] = (uint8_t)((scale[r + 4] & 15) | min[r + 4] << 4);
    }
}

static inline void unpack_six_bits(const uint8_t *in, uint8_t *scale, uint8_t *min) {
    for (int r = 0; r < 4; r++) {
        scale[r] = in[r] & 63;
        min[r] = in[r + 4] & 63;
        scale[r + 4] = (uint8_t)((in[r + 8] & 15) | in[r] >> 6 << 4);
        min[r + 4] = (uint8_t)(in[r + 8] >> 4 | in[r + 4] >> 6 << 4);
    }
}

static inline block_scales unpack_scales(const uint8_t *in) {
    block_scales s = {.d = f32_from_f16(get_u16(in)), .dmin = f32_from_f16(get_u16(in + 2))};
    unpack_six_bits(in + 4, s.scale, s.min);
    return s;
}

/* 8 values as 6-bit multiples of a float16 unit, which is returned; the largest becomes 63. What is out of range wraps
 * like ggml's conversion to uint8_t, then saturates. */
static inline uint16_t six_bits(const float *values, uint8_t *codes) {
    float largest = 0;
    for (int r = 0; r < RUNS; r++)
        if (values[r] > largest) largest = values[r];
    const float inverse = largest > 0 ? 63.0f / largest : 0.0f;
    for (int r = 0; r < RUNS; r++) {
        const uint8_t code = (uint8_t)nearest_int(inverse * values[r]);
        codes[r] = code > 63 ? 63 : code;
    }
    return f16_from_f32(largest / 63.0f);
}

/* Write the first 16 bytes of a block for its 8 fitted scales and minima, and put in their place what they decode to.
 */
static inline void pack_scales(float *scale, float *min, uint8_t *out) {
    uint8_t scale_code[RUNS], min_code[RUNS];
    put_u16(out, six_bits(scale, scale_code));
    put_u16(out + 2, six_bits(min, min_code));
    pack_six_bits(scale_code, min_code, out + 4);
    const block_scales s = unpack_scales(out);
    for (int r = 0; r < RUNS; r++) {
        scale[r] = s.d * s.scale[r];
        min[r] = s.dmin * s.min[r];
    }
}

/* Encode GROUP blocks up to their codes: fit every run, pack the scales of each block into the first bytes of its place
 * in out, and code every run against its packed scale. code is uint8 (GROUP, 256). */
static inline void encode_scales_and_codes(const float *x, int max_code, scale_min_search search, uint8_t *out,
                                           int block_bytes, uint8_t *code) {
    lane_f runs[PASSES][RUN];
    scale_min_fit fit[PASSES];
    float scale[GROUP * RUNS], min[GROUP * RUNS];
    for (int pass = 0; pass < PASSES; pass++) {
        lane_f *v = runs[pass], weight[RUN], sum_x2 = splat(0);
        load_runs(x + pass * LANES * RUN, RUN, v);
        for (int i = 0; i < RUN; i++) sum_x2 += v[i] * v[i];
        const lane_f rms = root(sum_x2 / (float)RUN);
        for (int i = 0; i < RUN; i++) weight[i] = rms + absolute(v[i]);
        fit[pass] = fit_scale_min(v, weight, RUN, max_code, search);
        store(scale + pass * LANES, fit[pass].scale);
        store(min + pass * LANES, fit[pass].minimum);
    }
    for (int b = 0; b < GROUP; b++) pack_scales(scale + b * RUNS, min + b * RUNS, out + b * block_bytes);

    for (int pass = 0; pass < PASSES; pass++) {
        const lane_f *v = runs[pass];
        const lane_f step = load(scale + pass * LANES), offset = load(min + pass * LANES);
        const lane_mask lost = eq(step, splat(0));
        lane_i q[RUN];
        for (int i = 0; i < RUN; i++) q[i] = clamp(nearest((v[i] + offset) / step), 0, max_code);
        if (any(lost))
            for (int i = 0; i < RUN; i++)
                q[i] = pick_i(lost, code_of(v[i], fit[pass].inverse, fit[pass].origin, max_code), q[i]);
        store_code_runs(code + pass * LANES * RUN, RUN, q);
    }
}

/* Run encode_group, which takes GROUP blocks, over any number of them; the last group is filled up with zeros. */
static inline void in_groups(void (*encode_group)(const float *x, uint8_t *out), const float *x, int64_t n_blocks,
                             uint8_t *out, int block_bytes) {
    for (; n_blocks >= GROUP; n_blocks -= GROUP, x += GROUP * BLOCK, out += GROUP * block_bytes) encode_group(x, out);
    if (n_blocks > 0) {
        float padded[GROUP * BLOCK] = {0};
        uint8_t packed[GROUP * 256]; /* no block is larger than its weights */
        memcpy(padded, x, (size_t)n_blocks * BLOCK * sizeof *x);
        encode_group(padded, packed);
        memcpy(out, packed, (size_t)(n_blocks * block_bytes));
    }
}
