/* Q5_K: 256 weights, x = d * scale[r] * q - dmin * min[r], q 0..31.
 *
 *     byte  0..15     d, dmin, scale, min: see scale_min_block.h
 *           16..47    bit 4 of q[32 r + i] << r                             r = 0..7, i = 0..31: byte 16 + i
 *           48..175   q[64 p + i] bits 0..3 | q[64 p + 32 + i] bits 0..3 << 4    p = 0..3: byte 48 + 32 p + i
 */
enum { Q5_K_BYTES = 176 };

static const scale_min_search q5_k_search = {.first = -0.5f, .step = 0.1f, .last = 15};

static inline void pack_q5_k_codes(const uint8_t *code, uint8_t *out) {
    for (int i = 0; i < 32; i++) {
        unsigned high = 0;
        for (int r = 0; r < RUNS; r++) high |= (unsigned)(code[32 * r + i] >> 4) << r;
        out[16 + i] = (uint8_t)high;
    }
    for (int p = 0; p < 4; p++)
        for (int i = 0; i < 32; i++)
            out[48 + 32 * p + i] = (uint8_t)((code[64 * p + i] & 15) | code[64 * p + 32 + i] << 4);
}

static inline void encode_q5_k_group(const float *x, uint8_t *out) {
    uint8_t code[GROUP * BLOCK];
    encode_scales_and_codes(x, 31, q5_k_search, out, Q5_K_BYTES, code);
    for (int b = 0; b < GROUP; b++) pack_q5_k_codes(code + b * BLOCK, out + b * Q5_K_BYTES);
}

static void encode_q5_k(const float *x, int64_t n_blocks, uint8_t *out) {
    in_groups(encode_q5_k_group, x, n_blocks, out, Q5_K_BYTES);
}

static void decode_q5_k(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK, in += Q5_K_BYTES) {
        const block_scales s = unpack_scales(in);
        for (int r = 0; r < RUNS; r++) {
            const float step = s.d * s.scale[r], offset = s.dmin * s.min[r];
            const uint8_t *high = in + 16, *low = in + 48 + r / 2 * 32;
            const int shift = r % 2 * 4;
            for (int i = 0; i < RUN; i++) {
                const int q = (low[i] >> shift & 15) | (high[i] >> r & 1) << 4;
                x[r * RUN + i] = step * (float)q - offset;
            }
        }
    }
}
