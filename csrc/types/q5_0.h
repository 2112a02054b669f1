/* Q5_0: 32 weights, x = d * (q - 16), q 0..31.
 *
 *     byte  0..1    d      float16
 *           2..5    high   see run_block.h
 *           6..21   low
 */
enum { Q5_0_BYTES = 22 };

static void pack_q5_0(const run_chunk *s, uint8_t *out) {
    for (int b = 0; b < LANES; b++, out += Q5_0_BYTES) {
        put_u16(out, f16_from_f32(s->d[b]));
        pack_high(s->q + b * BLOCK_32, out + 2);
        pack_low(s->q + b * BLOCK_32, out + 6);
    }
}

static void encode_q5_0_chunk(chunk c, uint8_t *out) {
    run_chunk s[GROUPS];
    encode_symmetric_chunk(c, 16, s);
    for (int g = 0; g < GROUPS; g++) pack_q5_0(&s[g], out + g * LANES * Q5_0_BYTES);
}

static void encode_q5_0(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q5_0_chunk, x, n_rows, n_columns, importance, BLOCK_32, Q5_0_BYTES, out);
}

static void decode_q5_0(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_32, in += Q5_0_BYTES) {
        const float d = f32_from_f16(get_u16(in));
        for (int i = 0; i < BLOCK_32; i++) x[i] = (float)((code_at(in + 6, i) | high_bit_at(in + 2, i)) - 16) * d;
    }
}
