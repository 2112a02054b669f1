/* Q5_K: 256 weights in 8 runs of 32, x = d * scale[r] * q - dmin * min[r], q 0..31, scale and min 0..63.
 *
 *     byte  0..15     d, dmin, scale, min: see scale_min_block.h
 *           16..47    bit 4 of q[32 r + i] << r                                  r = 0..7, i = 0..31: byte 16 + i
 *           48..175   q[64 p + i] bits 0..3 | q[64 p + 32 + i] bits 0..3 << 4    p = 0..3: byte 48 + 32 p + i
 */
enum { Q5_K_BYTES = 176 };

static const scale_min_kind q5_k_kind = {
    .run = 32,
    .runs = 8,
    .max_code = 31,
    .max_scale = 63,
    .saturates = {true, true},
    .weight = BY_RMS_AND_MAGNITUDE,
    .energy = 2,
    .plain = {.first = -0.5f, .step = 0.1f, .last = 15},
    .weighted = {.first = -0.9f, .step = 0.05f, .last = 36, .guarded = true},
    .pack_scales = pack_six_bits,
    .unpack_scales = unpack_six_bits,
};

static void put_codes_q5_k(const uint8_t *q, uint8_t *block) {
    for (int i = 0; i < 32; i++) {
        unsigned high = 0;
        for (int r = 0; r < 8; r++) high |= (unsigned)(q[32 * r + i] >> 4) << r;
        block[16 + i] = (uint8_t)high;
    }
    for (int p = 0; p < 4; p++)
        for (int i = 0; i < 32; i++) block[48 + 32 * p + i] = (uint8_t)((q[64 * p + i] & 15) | q[64 * p + 32 + i] << 4);
}

static const qk_coding q5_k_coding = {32, 31, 0, scales_head, put_codes_q5_k};

static void encode_q5_k_chunk(chunk c, uint8_t *out) {
    scale_min_chunk s;
    encode_scale_min_chunk(q5_k_kind, c, &s);
    for (int b = 0; b < LANES; b++, out += Q5_K_BYTES) {
        pack_head(&s, b, out);
        put_codes_q5_k(s.q + b * BLOCK_256, out);
    }
}

static void encode_q5_k(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q5_k_chunk, x, n_rows, n_columns, importance, BLOCK_256, Q5_K_BYTES, out);
}

static void decode_q5_k(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_256, in += Q5_K_BYTES) {
        float step[16], offset[16];
        unpack_head(in, step, offset);
        for (int i = 0; i < 32; i += LANES) {
            const lane_i high = load_u8(in + 16 + i) << 4;
            for (int p = 0; p < 4; p++) {
                const lane_i low = load_u8(in + 48 + 32 * p + i);
                const lane_i even = (low & 15) | (high >> 2 * p & 16), odd = low >> 4 | (high >> (2 * p + 1) & 16);
                float *pair = x + 64 * p + i;
                store(pair, step[2 * p] * to_float(even) - offset[8 + 2 * p]);
                store(pair + 32, step[2 * p + 1] * to_float(odd) - offset[8 + 2 * p + 1]);
            }
        }
    }
}
