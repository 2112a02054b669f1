/* Q4_K: 256 weights, x = d * scale[r] * q - dmin * min[r], q 0..15.
 *
 *     byte  0..15     d, dmin, scale, min: see scale_min_block.h
 *           16..143   q[64 p + i] | q[64 p + 32 + i] << 4      p = 0..3, i = 0..31: byte 16 + 32 p + i
 */
enum { Q4_K_BYTES = 144 };

static const scale_min_search q4_k_search = {.first = -1.0f, .step = 0.1f, .last = 20};

static inline void pack_q4_k_codes(const uint8_t *code, uint8_t *out) {
    for (int p = 0; p < 4; p++)
        for (int i = 0; i < 32; i++) out[16 + 32 * p + i] = (uint8_t)(code[64 * p + i] | code[64 * p + 32 + i] << 4);
}

static inline void encode_q4_k_group(const float *x, uint8_t *out) {
    uint8_t code[GROUP * BLOCK];
    encode_scales_and_codes(x, 15, q4_k_search, out, Q4_K_BYTES, code);
    for (int b = 0; b < GROUP; b++) pack_q4_k_codes(code + b * BLOCK, out + b * Q4_K_BYTES);
}

static void encode_q4_k(const float *x, int64_t n_blocks, uint8_t *out) {
    in_groups(encode_q4_k_group, x, n_blocks, out, Q4_K_BYTES);
}

static void decode_q4_k(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK, in += Q4_K_BYTES) {
        const block_scales s = unpack_scales(in);
        for (int r = 0; r < RUNS; r++) {
            const float step = s.d * s.scale[r], offset = s.dmin * s.min[r];
            const uint8_t *q = in + 16 + r / 2 * 32;
            const int shift = r % 2 * 4;
            for (int i = 0; i < RUN; i++) x[r * RUN + i] = step * (float)(q[i] >> shift & 15) - offset;
        }
    }
}
