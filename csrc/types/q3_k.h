/* Q3_K: 256 weights in 16 runs of 16, x = d * scale[r] * (q - 4), q 0..7, scale -32..31, stored as s = scale + 32.
 *
 *     byte  0..31      bit 2 of q[32 p + i] << p                   p = 0..7, i = 0..31: byte i
 *           32..95     bits 0..1 of q[128 h + 32 p + i] << 2 p     h = 0..1, p = 0..3: byte 32 + 32 h + i
 *           96..103    s[r] bits 0..3 | s[r + 8] bits 0..3 << 4    r = 0..7
 *           104..107   bits 4..5 of s[4 p + r] << 2 p              p = 0..3, r = 0..3: byte 104 + r
 *           108..109   d   float16
 */
enum { Q3_K_BYTES = 110, Q3_K_HALF = 4 };

static void put_codes_q3_k(const uint8_t *q, uint8_t *out) {
    uint8_t low[BLOCK_256];
    for (int i = 0; i < BLOCK_256; i++) low[i] = q[i] & 3;
    for (int i = 0; i < 32; i++) {
        unsigned high = 0;
        for (int p = 0; p < 8; p++) high |= (unsigned)(q[32 * p + i] >> 2) << p;
        out[i] = (uint8_t)high;
    }
    pack_two_bits(low, out + 32);
}

INLINE void pack_q3_k(const uint8_t *q, const int8_t *scale, uint16_t d, uint8_t *out) {
    put_codes_q3_k(q, out);
    uint8_t s[16];
    for (int r = 0; r < 16; r++) s[r] = (uint8_t)(scale[r] + 32);
    for (int r = 0; r < 8; r++) out[96 + r] = (uint8_t)((s[r] & 15) | s[r + 8] << 4);
    for (int r = 0; r < 4; r++)
        out[104 + r] = (uint8_t)(s[r] >> 4 | s[r + 4] >> 4 << 2 | s[r + 8] >> 4 << 4 | s[r + 12] >> 4 << 6);
    put_u16(out + 108, d);
}

/* Without importance: each run by descent, the block's scales by their peak. ggml leaves s at 0 in a block of zeros. */
INLINE void fit_q3_k_plain(chunk c, scale_chunk *s) {
    float scale[LANES * 16];
    for (int pass = 0; pass < 16; pass += GROUPS) {
        lane_f x[GROUPS][MAX_RUN], fitted[GROUPS];
        lane_i code[GROUPS][MAX_RUN];
        for (int g = 0; g < GROUPS; g++) load_runs(c.x + (pass + g) * LANES * 16, 16, x[g]);
        descend_scale(x, GROUPS, 16, Q3_K_HALF, code, fitted);
        for (int g = 0; g < GROUPS; g++) {
            store(scale + (pass + g) * LANES, fitted[g]);
            store_code_runs(s->q + (pass + g) * LANES * 16, 16, code[g]);
        }
    }
    peak_codes(scale, 32, 0, -32, s);
}

/* With importance: each run by search, and the block's scales by the same search over them. */
INLINE void fit_q3_k_weighted(chunk c, scale_fit *fit, scale_chunk *s) {
    float scale[LANES * 16], sum_w[LANES * 16], energy[LANES];
    store(energy, 2.0f * sum_of_squares(c.x, BLOCK_256) / (float)BLOCK_256);
    for (int pass = 0; pass < 16; pass += GROUPS) {
        lane_f x[GROUPS][MAX_RUN], w[GROUPS][MAX_RUN];
        for (int g = 0; g < GROUPS; g++) {
            const int first = (pass + g) * LANES;
            load_runs(c.x + first * 16, 16, x[g]);
            store(sum_w + first, load_weights(c.importance + first * 16, x[g], 16, spread(energy, pass + g, 16), w[g]));
        }
        fit_scale(x, w, GROUPS, 16, Q3_K_HALF, fit + pass);
        for (int g = 0; g < GROUPS; g++) store(scale + (pass + g) * LANES, fit[pass + g].scale);
    }
    lane_f values[MAX_RUN], weights[MAX_RUN];
    for (int r = 0; r < 16; r++) {
        values[r] = gather(scale, r, 16);
        weights[r] = gather(sum_w, r, 16);
    }
    scale_fit of_scales;
    fit_scale(&values, &weights, 1, 16, 32, &of_scales);
    float unit[LANES];
    store(unit, of_scales.scale);
    for (int b = 0; b < LANES; b++) s->d[b] = f16_from_f32(unit[b]);
    for (int r = 0; r < 16; r++) {
        int32_t code[LANES];
        store_i(code, own_code(values[r], of_scales, 32));
        for (int b = 0; b < LANES; b++) s->scale[16 * b + r] = (int8_t)(code[b] - 32);
    }
}

static void encode_q3_k_chunk(chunk c, uint8_t *out) {
    scale_chunk s;
    scale_fit fit[16];
    if (c.importance)
        fit_q3_k_weighted(c, fit, &s);
    else
        fit_q3_k_plain(c, &s);
    code_against_scales(c, Q3_K_HALF, c.importance ? fit : NULL, &s);
    for (int b = 0; b < LANES; b++) pack_q3_k(s.q + b * BLOCK_256, s.scale + 16 * b, s.d[b], out + b * Q3_K_BYTES);
}

static void encode_q3_k(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q3_k_chunk, x, n_rows, n_columns, importance, BLOCK_256, Q3_K_BYTES, out);
}

/* s[0..15] from bytes 96..107, four bytes at a time, as one number. */
INLINE void unpack_q3_k_scales(const uint8_t *in, uint8_t *s) {
    const uint32_t high = get_u32(in + 8);
    for (int p = 0; p < 4; p++) {
        const uint32_t low = get_u32(in + p % 2 * 4) >> p / 2 * 4;
        put_u32(s + 4 * p, (low & 0x0f0f0f0f) | (high >> 2 * p & 0x03030303) << 4);
    }
}

static void scales_q3_k(const uint8_t *block, float *step, float *offset) {
    const float d = f32_from_f16(get_u16(block + 108));
    uint8_t s[16];
    unpack_q3_k_scales(block + 96, s);
    for (int r = 0; r < 16; r++) {
        step[r] = d * (float)(s[r] - 32);
        offset[r] = 0;
    }
}

static const qk_coding q3_k_coding = {16, 7, Q3_K_HALF, scales_q3_k, put_codes_q3_k};

static void decode_q3_k(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_256, in += Q3_K_BYTES) {
        const float d = f32_from_f16(get_u16(in + 108));
        uint8_t s[16];
        float step[16];
        unpack_q3_k_scales(in + 96, s);
        for (int r = 0; r < 16; r += LANES) store(step + r, d * to_float(load_u8(s + r) - 32));
        for (int h = 0; h < 2; h++) {
            for (int i = 0; i < 32; i += LANES) {
                const lane_i low = load_u8(in + 32 + 32 * h + i), high = load_u8(in + i) >> 4 * h << 2;
                for (int p = 0; p < 4; p++) {
                    const lane_i q = (low >> 2 * p & 3) | (high >> p & 4);
                    store(x + 128 * h + 32 * p + i, step[8 * h + 2 * p + i / 16] * to_float(q - 4));
                }
            }
        }
    }
}
