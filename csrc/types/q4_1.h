/* Q4_1: 32 weights, x = d * q + m, q 0..15.
 *
 *     byte  0..1    d     float16
 *           2..3    m     float16
 *           4..19   low   see run_block.h
 */
enum { Q4_1_BYTES = 20 };

static void pack_q4_1(const run_chunk *s, uint8_t *out) {
    for (int b = 0; b < LANES; b++, out += Q4_1_BYTES) {
        put_u16(out, s->d[b]);
        put_u16(out + 2, s->m[b]);
        put_low(s, b, out + 4);
    }
}

static void put_codes_q4_1(const uint8_t *q, uint8_t *block) { put_low_codes(q, block + 4); }

static const qk_coding q4_1_coding = {BLOCK_32, 15, 0, scale_of_range, put_codes_q4_1};

static void encode_q4_1_chunk(chunk c, uint8_t *out) {
    run_chunk s[GROUPS];
    encode_range_chunk(c, 15, s);
    for (int g = 0; g < GROUPS; g++) pack_q4_1(&s[g], out + g * LANES * Q4_1_BYTES);
}

static void encode_q4_1(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    encode_in_chunks(encode_q4_1_chunk, x, n_rows, n_columns, importance, BLOCK_32, Q4_1_BYTES, out);
}

static void decode_q4_1(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_32, in += Q4_1_BYTES) {
        const float d = f32_from_f16(get_u16(in)), m = f32_from_f16(get_u16(in + 2));
        for (int i = 0; i < 16; i += LANES) {
            const lane_i q = load_u8(in + 4 + i);
            store(x + i, to_float(q & 15) * d + m);
            store(x + 16 + i, to_float(q >> 4) * d + m);
        }
    }
}
