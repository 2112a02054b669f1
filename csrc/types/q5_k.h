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

static void encode_q5_k_chunk(chunk c, uint8_t *out) {
    scale_min_chunk s;
    encode_scale_min_chunk(q5_k_kind, c, &s);
    for (int b = 0; b < LANES; b++, out += Q5_K_BYTES) {
        const uint8_t *q = s.q + b * BLOCK_256;
        pack_head(&s, b, out);
        for (int i = 0; i < 32; i++) {
            unsigned high = 0;
            for (int r = 0; r < 8; r++) high |= (unsigned)(q[32 * r + i] >> 4) << r;
            out[16 + i] = (uint8_t)high;
        }
        for (int p = 0; p < 4; p++)
            for (int i = 0; i < 32; i++)
                out[48 + 32 * p + i] = (uint8_t)((q[64 * p + i] & 15) | q[64 * p + 32 + i] << 4);
    }
}

static void encode_q5_k(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q5_k_chunk, x, n_rows, n_columns, importance, BLOCK_256, Q5_K_BYTES, out);
}

static void decode_q5_k(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_256, in += Q5_K_BYTES) {
        float step[8], offset[8];
        unpack_head(in, step, offset);
        for (int r = 0; r < 8; r++) {
            const uint8_t *high = in + 16, *low = in + 48 + r / 2 * 32;
            const int shift = r % 2 * 4;
            for (int i = 0; i < 32; i++) {
                const int q = (low[i] >> shift & 15) | (high[i] >> r & 1) << 4;
                x[r * 32 + i] = step[r] * (float)q - offset[r];
            }
        }
    }
}
