/* Q5_1: 32 weights, x = d * q + m, q 0..31.
 *
 *     byte  0..1    d      float16
 *           2..3    m      float16
 *           4..7    high   see run_block.h
 *           8..23   low
 */
enum { Q5_1_BYTES = 24 };

static void pack_q5_1(const run_chunk *s, uint8_t *out) {
    for (int b = 0; b < LANES; b++, out += Q5_1_BYTES) {
        put_u16(out, f16_from_f32(s->d[b]));
        put_u16(out + 2, f16_from_f32(s->m[b]));
        pack_high(s->q + b * BLOCK_32, out + 4);
        pack_low(s->q + b * BLOCK_32, out + 8);
    }
}

static void encode_q5_1_chunk(chunk c, uint8_t *out) {
    run_chunk s[GROUPS];
    encode_range_chunk(c, 31, s);
    for (int g = 0; g < GROUPS; g++) pack_q5_1(&s[g], out + g * LANES * Q5_1_BYTES);
}

static void encode_q5_1(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q5_1_chunk, x, n_rows, n_columns, importance, BLOCK_32, Q5_1_BYTES, out);
}

static void decode_q5_1(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_32, in += Q5_1_BYTES) {
        const float d = f32_from_f16(get_u16(in)), m = f32_from_f16(get_u16(in + 2));
        for (int i = 0; i < BLOCK_32; i++) x[i] = (float)(code_at(in + 8, i) | high_bit_at(in + 4, i)) * d + m;
    }
}
