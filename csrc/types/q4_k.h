/* Q4_K: 256 weights in 8 runs of 32, x = d * scale[r] * q - dmin * min[r], q 0..15, scale and min 0..63.
 *
 *     byte  0..15     d, dmin, scale, min: see scale_min_block.h
 *           16..143   q[64 p + i] | q[64 p + 32 + i] << 4      p = 0..3, i = 0..31: byte 16 + 32 p + i
 */
enum { Q4_K_BYTES = 144 };

static const scale_min_kind q4_k_kind = {
    .run = 32,
    .runs = 8,
    .max_code = 15,
    .max_scale = 63,
    .saturates = {true, false},
    .weight = BY_RMS_AND_MAGNITUDE,
    .energy = 2,
    .plain = {.first = -1.0f, .step = 0.1f, .last = 20},
    .weighted = {.first = -0.9f, .step = 0.05f, .last = 36, .guarded = true},
    .pack_scales = pack_six_bits,
    .unpack_scales = unpack_six_bits,
};

static void put_codes_q4_k(const uint8_t *q, uint8_t *block) {
    for (int p = 0; p < 4; p++)
        for (int i = 0; i < 32; i++) block[16 + 32 * p + i] = (uint8_t)(q[64 * p + i] | q[64 * p + 32 + i] << 4);
}

static const qk_coding q4_k_coding = {32, 15, 0, scales_head, put_codes_q4_k};

static void encode_q4_k_chunk(chunk c, uint8_t *out) {
    scale_min_chunk s;
    encode_scale_min_chunk(q4_k_kind, c, &s);
    for (int b = 0; b < LANES; b++, out += Q4_K_BYTES) {
        pack_head(&s, b, out);
        put_codes_q4_k(s.q + b * BLOCK_256, out);
    }
}

static void encode_q4_k(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q4_k_chunk, x, n_rows, n_columns, importance, BLOCK_256, Q4_K_BYTES, out);
}

static void decode_q4_k(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_256, in += Q4_K_BYTES) {
        float step[16], offset[16];
        unpack_head(in, step, offset);
        for (int p = 0; p < 4; p++) {
            for (int i = 0; i < 32; i += LANES) {
                const lane_i q = load_u8(in + 16 + 32 * p + i);
                float *pair = x + 64 * p + i;
                store(pair, step[2 * p] * to_float(q & 15) - offset[8 + 2 * p]);
                store(pair + 32, step[2 * p + 1] * to_float(q >> 4) - offset[8 + 2 * p + 1]);
            }
        }
    }
}
