/* Q2_K: 256 weights in 16 runs of 16, x = d * scale[r] * q - dmin * min[r], q 0..3, scale and min 0..15.
 *
 *     byte  0..15    scale[r] | min[r] << 4                 r = 0..15
 *           16..79   q[128 h + 32 p + i] << 2 p             h = 0..1, p = 0..3, i = 0..31: byte 16 + 32 h + i
 *           80..81   d      float16
 *           82..83   dmin   float16
 */
enum { Q2_K_BYTES = 84 };

/* A code beyond 15, which a negative scale gives, runs into its neighbour, as in ggml. */
INLINE void pack_nibbles(const uint8_t *scale, const uint8_t *min, uint8_t *out) {
    for (int r = 0; r < 16; r++) out[r] = (uint8_t)(scale[r] | min[r] << 4);
}

INLINE void unpack_nibbles(const uint8_t *in, uint8_t *scale, uint8_t *min) {
    for (int r = 0; r < 16; r++) {
        scale[r] = in[r] & 15;
        min[r] = in[r] >> 4;
    }
}

static const scale_min_kind q2_k_kind = {
    .run = 16,
    .runs = 16,
    .max_code = 3,
    .max_scale = 15,
    .weight = BY_MAGNITUDE,
    .energy = 1,
    .plain = {.first = -0.5f, .step = 0.1f, .last = 15, .absolute = true},
    .weighted = {.first = -0.9f, .step = 0.05f, .last = 36, .guarded = true},
    .pack_scales = pack_nibbles,
    .unpack_scales = unpack_nibbles,
};

/* Four codes of 2 bits in a byte, 32 weights apart: Q2_K and the low bits of Q3_K. */
INLINE void pack_two_bits(const uint8_t *q, uint8_t *out) {
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *four = q + 128 * h + i;
            out[32 * h + i] = (uint8_t)(four[0] | four[32] << 2 | four[64] << 4 | four[96] << 6);
        }
}

static void scales_q2_k(const uint8_t *block, float *step, float *offset) {
    const float d = f32_from_f16(get_u16(block + 80)), dmin = f32_from_f16(get_u16(block + 82));
    uint8_t scale[16], min[16];
    unpack_nibbles(block, scale, min);
    for (int r = 0; r < 16; r++) {
        step[r] = d * scale[r];
        offset[r] = dmin * min[r];
    }
}

static void put_codes_q2_k(const uint8_t *q, uint8_t *block) { pack_two_bits(q, block + 16); }

static const qk_coding q2_k_coding = {16, 3, 0, scales_q2_k, put_codes_q2_k};

static void encode_q2_k_chunk(chunk c, uint8_t *out) {
    scale_min_chunk s;
    encode_scale_min_chunk(q2_k_kind, c, &s);
    for (int b = 0; b < LANES; b++, out += Q2_K_BYTES) {
        memcpy(out, s.scales[b], 16);
        put_codes_q2_k(s.q + b * BLOCK_256, out);
        put_u16(out + 80, s.d[b]);
        put_u16(out + 82, s.dmin[b]);
    }
}

static void encode_q2_k(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q2_k_chunk, x, n_rows, n_columns, importance, BLOCK_256, Q2_K_BYTES, out);
}

static void decode_q2_k(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_256, in += Q2_K_BYTES) {
        const float d = f32_from_f16(get_u16(in + 80)), dmin = f32_from_f16(get_u16(in + 82));
        float step[16], offset[16];
        for (int r = 0; r < 16; r += LANES) {
            const lane_i codes = load_u8(in + r);
            store(step + r, d * to_float(codes & 15));
            store(offset + r, dmin * to_float(codes >> 4));
        }
        for (int h = 0; h < 2; h++) {
            for (int i = 0; i < 32; i += LANES) {
                const lane_i q = load_u8(in + 16 + 32 * h + i);
                for (int p = 0; p < 4; p++) {
                    const int r = 8 * h + 2 * p + i / 16;
                    store(x + 128 * h + 32 * p + i, step[r] * to_float(q >> 2 * p & 3) - offset[r]);
                }
            }
        }
    }
}
