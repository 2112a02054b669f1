/* low_rank.h: what an adapter changes of a matrix. rows += scale * (coefficients x basis), and the norms of rows.
 *
 * A lane is a column of the product and a row of the norms. A sum begins at 0 and takes its terms in index order, so
 * that it does not depend on the size of the tiles. */

/* The sums of a tile stay in registers while the ranks go by: 16 of the 32 there are with AVX-512, 8 of 16 elsewhere.
 */
enum { TILE_ROWS = 4, TILE_LANES = LANES == 16 ? 4 : 2 };

/* n_rows <= TILE_ROWS and n_lanes <= TILE_LANES are constants where this is inlined. */
INLINE void add_tile(float *rows, const float *coefficients, const float *basis, int64_t n_columns, int64_t rank,
                     float scale, int n_rows, int n_lanes) {
    lane_f sum[TILE_ROWS][TILE_LANES], column[TILE_LANES];
    for (int r = 0; r < n_rows; r++)
        for (int v = 0; v < n_lanes; v++) sum[r][v] = splat(0);
    for (int64_t i = 0; i < rank; i++) {
        for (int v = 0; v < n_lanes; v++) column[v] = load(basis + i * n_columns + v * LANES);
        for (int r = 0; r < n_rows; r++)
            for (int v = 0; v < n_lanes; v++) sum[r][v] += splat(coefficients[r * rank + i]) * column[v];
    }
    for (int r = 0; r < n_rows; r++) {
        for (int v = 0; v < n_lanes; v++) {
            float *at = rows + r * n_columns + v * LANES;
            store(at, load(at) + splat(scale) * sum[r][v]);
        }
    }
}

void JOIN(qk_add_low_rank, SUFFIX)(float *rows, int64_t n_rows, int64_t n_columns, const float *coefficients,
                                   const float *basis, int64_t rank, float scale) {
    enum { TILE_COLUMNS = TILE_LANES * LANES };
    int64_t c = 0;
    for (; c + TILE_COLUMNS <= n_columns; c += TILE_COLUMNS) {
        int64_t r = 0;
        for (; r + TILE_ROWS <= n_rows; r += TILE_ROWS)
            add_tile(rows + r * n_columns + c, coefficients + r * rank, basis + c, n_columns, rank, scale, TILE_ROWS,
                     TILE_LANES);
        for (; r < n_rows; r++)
            add_tile(rows + r * n_columns + c, coefficients + r * rank, basis + c, n_columns, rank, scale, 1,
                     TILE_LANES);
    }
    for (; c + LANES <= n_columns; c += LANES)
        for (int64_t r = 0; r < n_rows; r++)
            add_tile(rows + r * n_columns + c, coefficients + r * rank, basis + c, n_columns, rank, scale, 1, 1);
    for (; c < n_columns; c++) {
        for (int64_t r = 0; r < n_rows; r++) {
            float sum = 0;
            for (int64_t i = 0; i < rank; i++) sum += coefficients[r * rank + i] * basis[i * n_columns + c];
            rows[r * n_columns + c] += scale * sum;
        }
    }
}

/* norms[r] = sqrt of the sum of the squares of row r; LANES rows side by side where their length allows it. */
void JOIN(qk_row_norms, SUFFIX)(const float *rows, int64_t n_rows, int64_t n_columns, float *norms) {
    int64_t r = 0;
    for (; n_columns % LANES == 0 && r + LANES <= n_rows; r += LANES)
        store(norms + r, root(sum_of_squares(rows + r * n_columns, n_columns)));
    for (; r < n_rows; r++) {
        float sum = 0;
        for (int64_t c = 0; c < n_columns; c++) sum += rows[r * n_columns + c] * rows[r * n_columns + c];
        norms[r] = sqrtf(sum);
    }
}
