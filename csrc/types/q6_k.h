/* Q6_K: 256 weights in 16 runs of 16, x = d * scale[r] * (q - 32), q 0..63.
 *
 *     byte  0..127     q[128 h + 32 p + i] bits 0..3 | q[128 h + 64 + 32 p + i] bits 0..3 << 4
 *                      h = 0..1, p = 0..1, i = 0..31: byte 64 h + 32 p + i
 *           128..191   bits 4..5 of q[128 h + 32 p + i] << 2 p, p = 0..3: byte 128 + 32 h + i
 *           192..207   scale[r]   int8, r = 0..15
 *           208..209   d          float16
 */
enum { Q6_K_BYTES = 210, Q6_K_HALF = 32 };

static void put_codes_q6_k(const uint8_t *q, uint8_t *out) {
    for (int h = 0; h < 2; h++, q += 128) {
        for (int i = 0; i < 64; i++) out[64 * h + i] = (uint8_t)((q[i] & 15) | (q[64 + i] & 15) << 4);
        for (int i = 0; i < 32; i++)
            out[128 + 32 * h + i] =
                (uint8_t)(q[i] >> 4 | q[32 + i] >> 4 << 2 | q[64 + i] >> 4 << 4 | q[96 + i] >> 4 << 6);
    }
}

INLINE void pack_q6_k(const uint8_t *q, const int8_t *scale, uint16_t d, uint8_t *out) {
    put_codes_q6_k(q, out);
    memcpy(out + 192, scale, 16);
    put_u16(out + 208, d);
}

static void scales_q6_k(const uint8_t *block, float *step, float *offset) {
    const float d = f32_from_f16(get_u16(block + 208));
    for (int r = 0; r < 16; r++) {
        step[r] = d * (float)(int8_t)block[192 + r];
        offset[r] = 0;
    }
}

static const qk_coding q6_k_coding = {16, 63, Q6_K_HALF, scales_q6_k, put_codes_q6_k};

static void encode_q6_k_chunk(chunk c, uint8_t *out) {
    scale_chunk s;
    scale_fit fit[16];
    float scale[LANES * 16];
    for (int pass = 0; pass < 16; pass += GROUPS) {
        lane_f x[GROUPS][MAX_RUN], w[GROUPS][MAX_RUN];
        for (int g = 0; g < GROUPS; g++) {
            const int first = (pass + g) * LANES * 16;
            load_runs(c.x + first, 16, x[g]);
            if (c.importance)
                load_runs(c.importance + first, 16, w[g]);
            else
                for (int i = 0; i < 16; i++) w[g][i] = x[g][i] * x[g][i];
        }
        fit_scale(x, w, GROUPS, 16, Q6_K_HALF, fit + pass);
        for (int g = 0; g < GROUPS; g++) store(scale + (pass + g) * LANES, fit[pass + g].scale);
    }
    peak_codes(scale, 128, RUN_EPSILON, 0, &s);
    code_against_scales(c, Q6_K_HALF, fit, &s);
    for (int b = 0; b < LANES; b++, out += Q6_K_BYTES) {
        float largest = 0;
        for (int r = 0; r < 16; r++) largest = fabsf(scale[16 * b + r]) > largest ? fabsf(scale[16 * b + r]) : largest;
        if (largest < RUN_EPSILON)
            memset(out, 0, Q6_K_BYTES);
        else
            pack_q6_k(s.q + b * BLOCK_256, s.scale + 16 * b, s.d[b], out);
    }
}

static void encode_q6_k(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q6_k_chunk, x, n_rows, n_columns, importance, BLOCK_256, Q6_K_BYTES, out);
}

static void decode_q6_k(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_256, in += Q6_K_BYTES) {
        const float d = f32_from_f16(get_u16(in + 208));
        float step[16];
        for (int r = 0; r < 16; r++) step[r] = d * (float)(int8_t)in[192 + r];
        for (int h = 0; h < 2; h++) {
            for (int i = 0; i < 32; i += LANES) {
                const lane_i high = load_u8(in + 128 + 32 * h + i) << 4;
                for (int p = 0; p < 4; p++) {
                    const lane_i low = load_u8(in + 64 * h + 32 * (p % 2) + i) >> p / 2 * 4 & 15;
                    const lane_i q = low | (high >> 2 * p & 0x30);
                    store(x + 128 * h + 32 * p + i, step[8 * h + 2 * p + i / 16] * to_float(q - 32));
                }
            }
        }
    }
}
