/* F32, F16, BF16: one weight a block, no scale. Importance does not matter. */

static void encode_f32(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    (void)importance;
    memcpy(out, x, (size_t)(n_rows * n_columns) * 4);
}

static void decode_f32(const uint8_t *in, int64_t n_blocks, float *x) { memcpy(x, in, (size_t)n_blocks * 4); }

static void encode_f16(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    (void)importance;
    f16s_from_f32s(x, n_rows * n_columns, out);
}

static void decode_f16(const uint8_t *in, int64_t n_blocks, float *x) { f32s_from_f16s(in, n_blocks, x); }

static void encode_bf16(const float *x, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out) {
    (void)importance;
    for (int64_t i = 0; i < n_rows * n_columns; i++) put_u16(out + 2 * i, bf16_from_f32(x[i]));
}

static void decode_bf16(const uint8_t *in, int64_t n_blocks, float *x) {
    for (int64_t i = 0; i < n_blocks; i++) x[i] = f32_from_bf16(get_u16(in + 2 * i));
}
