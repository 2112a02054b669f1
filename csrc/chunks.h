/* chunks.h: a few blocks at a time, with what each encoder needs to know of them. */

enum { MAX_RUN = 32 };

/* A run's sums are chains of additions, each of which waits for the one before, and so does each candidate for the one
 * before. Hence GROUPS groups of LANES runs are searched side by side, weight by weight: the processor goes on with one
 * while another waits. Groups share nothing. A search takes arrays with an entry for each of its groups. */
enum { GROUPS = 4 };

/* Blocks in a chunk: LANES of 256 weights are 8 or 16 groups of runs, and of 32 weights each group takes LANES. */
enum { BLOCK_32 = 32, BLOCK_256 = 256 };
enum { CHUNK_32 = GROUPS * LANES, CHUNK_256 = LANES };
_Static_assert(GROUPS <= BLOCK_256 / BLOCK_32, "buffers hold a chunk of 256");

typedef struct {
    const float *x;           /* CHUNK_256 or CHUNK_32 blocks, dense */
    const float *importance;  /* of each of their weights, laid out like x; NULL if there is none */
    const float *mean_square; /* per block: of the row it lies in; only with importance and blocks of 32 */
} chunk;

typedef void (*chunk_encoder)(chunk c, uint8_t *out);

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
    const int chunk_blocks = block_weights == BLOCK_32 ? CHUNK_32 : CHUNK_256;
    float row_mean_square[QK_MAX_ROWS], mean_square[CHUNK_32] = {0};
    float padded[CHUNK_256 * BLOCK_256], weight[CHUNK_256 * BLOCK_256];
    uint8_t packed[CHUNK_256 * BLOCK_256]; /* no block is larger than its weights */
    const bool row_energy = importance != NULL && block_weights == BLOCK_32;
    if (row_energy) row_mean_squares(rows, n_rows, n_columns, row_mean_square);
    for (int64_t first = 0; first < n_blocks; first += chunk_blocks) {
        const int64_t n = n_blocks - first < chunk_blocks ? n_blocks - first : chunk_blocks;
        chunk c = {rows + first * block_weights, NULL, NULL};
        if (n < chunk_blocks) {
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
            memset(weight + n * block_weights, 0, (size_t)(chunk_blocks - n) * block_weights * sizeof(float));
            c.importance = weight;
            if (row_energy) c.mean_square = mean_square;
        }
        if (n == chunk_blocks) {
            encode(c, out + first * block_bytes);
        } else {
            encode(c, packed);
            memcpy(out + first * block_bytes, packed, (size_t)(n * block_bytes));
        }
    }
}

/* The weight of each value where there is importance: importance * sqrt(energy + x^2). Returns their sum. */
INLINE lane_f load_weights(const float *importance, const lane_f *x, int n, lane_f energy, lane_f *w) {
    lane_f sum = splat(0);
    load_runs(importance, n, w);
    for (int i = 0; i < n; i++) {
        w[i] *= root(energy + x[i] * x[i]);
        sum += w[i];
    }
    return sum;
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
