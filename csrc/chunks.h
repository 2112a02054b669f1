/* chunks.h: LANES blocks at a time, with what each encoder needs to know of them. */

typedef struct {
    const float *x;           /* LANES blocks, dense */
    const float *importance;  /* of each of their weights, laid out like x; NULL if there is none */
    const float *mean_square; /* per block: of the row it lies in; only with importance and blocks of 32 */
} chunk;

typedef void (*chunk_encoder)(chunk c, uint8_t *out);

enum { BLOCK_32 = 32, BLOCK_256 = 256 };

/* Lane j: the sum of squares of the n floats at runs + j * n, n a multiple of 16, added in index order. */
INLINE lane_f sum_of_squares(const float *runs, int64_t n) {
    lane_f sum = splat(0);
    for (int64_t i = 0; i < n; i += LANES) {
        lane_f square[LANES];
        for (int j = 0; j < LANES; j++) square[j] = load(runs + j * n + i);
        transpose(square);
        for (int j = 0; j < LANES; j++) sum += square[j] * square[j];
    }
    return sum;
}

/* The mean square of each row of n_columns, LANES rows side by side; the rest one by one in the same order. */
static void row_mean_squares(const float *rows, int64_t n_rows, int64_t n_columns, float *out) {
    int64_t row = 0;
    for (; row + LANES <= n_rows; row += LANES)
        store(out + row, sum_of_squares(rows + row * n_columns, n_columns) / (float)n_columns);
    for (; row < n_rows; row++) {
        float sum = 0;
        for (int64_t i = 0; i < n_columns; i++) sum += rows[row * n_columns + i] * rows[row * n_columns + i];
        out[row] = sum / (float)n_columns;
    }
}

/* Run encode over the blocks of at most QK_MAX_ROWS rows; the last chunk is filled up with zeros. */
INLINE void encode_in_chunks(chunk_encoder encode, const float *rows, int64_t n_rows, int64_t n_columns,
                             const float *importance, int block_weights, int block_bytes, uint8_t *out) {
    const int64_t row_blocks = n_columns / block_weights, n_blocks = n_rows * row_blocks;
    float row_mean_square[QK_MAX_ROWS], mean_square[LANES] = {0};
    float padded[LANES * BLOCK_256], weight[LANES * BLOCK_256];
    uint8_t packed[LANES * BLOCK_256]; /* no block is larger than its weights */
    const bool row_energy = importance != NULL && block_weights == BLOCK_32;
    if (row_energy) row_mean_squares(rows, n_rows, n_columns, row_mean_square);
    for (int64_t first = 0; first < n_blocks; first += LANES) {
        const int64_t n = n_blocks - first < LANES ? n_blocks - first : LANES;
        chunk c = {rows + first * block_weights, NULL, NULL};
        if (n < LANES) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, c.x, (size_t)n * block_weights * sizeof(float));
            c.x = padded;
        }
        if (importance != NULL) {
            for (int64_t b = 0; b < n; b++) {
                memcpy(weight + b * block_weights, importance + (first + b) % row_blocks * block_weights,
                       block_weights * sizeof(float));
                if (row_energy) mean_square[b] = row_mean_square[(first + b) / row_blocks];
            }
            memset(weight + n * block_weights, 0, (size_t)(LANES - n) * block_weights * sizeof(float));
            c.importance = weight;
            if (row_energy) c.mean_square = mean_square;
        }
        if (n == LANES) {
            encode(c, out + first * block_bytes);
        } else {
            encode(c, packed);
            memcpy(out + first * block_bytes, packed, (size_t)(n * block_bytes));
        }
    }
}

/* Which block of the chunk the run in lane j of a pass belongs to: per-block values spread over the lanes of a pass. */
INLINE lane_f spread(const float *per_block, int pass, int runs) {
    float value[LANES];
    for (int j = 0; j < LANES; j++) value[j] = per_block[(pass * LANES + j) / runs];
    return load(value);
}

/* Value r of every block, lane = block: per_run[block * runs + r]. */
INLINE lane_f gather(const float *per_run, int r, int runs) {
    float value[LANES];
    for (int j = 0; j < LANES; j++) value[j] = per_run[j * runs + r];
    return load(value);
}
