/* Q4_0: 32 weights, x = d * (q - 8), q 0..15.
 *
 *     byte  0..1    d     float16
 *           2..17   low   see run_block.h
 */
enum { Q4_0_BYTES = 18 };

static void pack_q4_0(const run_chunk *s, uint8_t *out) {
    for (int b = 0; b < LANES; b++, out += Q4_0_BYTES) {
        put_u16(out, s->d[b]);
        put_low(s, b, out + 2);
    }
}

static void put_codes_q4_0(const uint8_t *q, uint8_t *block) { put_low_codes(q, block + 2); }

static const qk_coding q4_0_coding = {BLOCK_32, 15, 8, scale_of_symmetric, put_codes_q4_0};

static void encode_q4_0_chunk(chunk c, uint8_t *out) {
    run_chunk s[GROUPS];
    encode_symmetric_chunk(c, 8, s);
    for (int g = 0; g < GROUPS; g++) pack_q4_0(&s[g], out + g * LANES * Q4_0_BYTES);
}

static void encode_q4_0(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q4_0_chunk, x, n_rows, n_columns, importance, BLOCK_32, Q4_0_BYTES, out);
}

static void decode_q4_0(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_32, in += Q4_0_BYTES) {
        const float d = f32_from_f16(get_u16(in));
        for (int i = 0; i < 16; i += LANES) {
            const lane_i q = load_u8(in + 2 + i);
            store(x + i, to_float((q & 15) - 8) * d);
            store(x + 16 + i, to_float((q >> 4) - 8) * d);
        }
    }
}
