/* Q5_0: 32 weights, x = d * (q - 16), q 0..31.
 *
 *     byte  0..1    d      float16
 *           2..5    high   see run_block.h
 *           6..21   low
 */
enum { Q5_0_BYTES = 22 };

static void pack_q5_0(const run_chunk *s, uint8_t *out) {
    for (int b = 0; b < LANES; b++, out += Q5_0_BYTES) {
        put_u16(out, s->d[b]);
        put_u32(out + 2, s->high[b]);
        put_low(s, b, out + 6);
    }
}

static void put_codes_q5_0(const uint8_t *q, uint8_t *block) {
    put_high_codes(q, block + 2);
    put_low_codes(q, block + 6);
}

static const qk_coding q5_0_coding = {BLOCK_32, 31, 16, scale_of_symmetric, put_codes_q5_0};

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
        const uint32_t high = get_u32(in + 2);
        for (int i = 0; i < 16; i += LANES) {
            const lane_i low = load_u8(in + 6 + i);
            store(x + i, to_float(((low & 15) | bit_lanes(high >> i, 16)) - 16) * d);
            store(x + 16 + i, to_float((low >> 4 | bit_lanes(high >> (16 + i), 16)) - 16) * d);
        }
    }
}
