/* Q8_0: 32 weights, x = d * q.
 *
 *     byte  0..1    d      float16
 *           2..33   q[i]   int8, i = 0..31
 */
enum { Q8_0_BYTES = 34 };

/* Half away from zero, as roundf(), for |x| < 2^23. The addend is the largest float below 0.5: 0.5 itself would lift
 * 0.49999997 to 1. */
INLINE int32_t round_away(float x) { return (int32_t)(x + copysignf(0x1.fffffep-2f, x)); }

static void encode_q8_0(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    (void)importance; /* the same with and without, as ggml's */
    for (int64_t n = n_rows * n_columns / BLOCK_32; n > 0; n--, x += BLOCK_32, out += Q8_0_BYTES) {
        /* Magnitudes compare like their bits, and integers let the compiler take the maximum in vectors. */
        uint32_t largest = 0;
        for (int i = 0; i < BLOCK_32; i++) {
            const uint32_t magnitude = float_bits(x[i]) & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
        const float d = bits_float(largest) / 127;
        const float inverse = d > 0x1p-128f ? 1.0f / d : 0.0f; /* below, 1 / d is infinite and the codes are 0 */
        put_u16(out, f16_from_f32(d));
        int8_t q[BLOCK_32];
        for (int i = 0; i < BLOCK_32; i++) q[i] = (int8_t)round_away(x[i] * inverse);
        memcpy(out + 2, q, sizeof q);
    }
}

static void decode_q8_0(const uint8_t *in, int64_t n_blocks, float *x) {
    for (; n_blocks > 0; n_blocks--, x += BLOCK_32, in += Q8_0_BYTES) {
        const float d = f32_from_f16(get_u16(in));
        for (int i = 0; i < BLOCK_32; i += LANES) store(x + i, to_float(load_i8(in + 2 + i)) * d);
    }
}
