/* product.h: matrix products whose sums go in index order, so that they have the same bits for every number of lanes.
 *
 * Lanes are columns of the result. A tile of it stays in registers while a piece of the sum passes; where pieces begin
 * and end does not show, for each number of the result sees the same additions in the same order.
 */
enum { STRIP = QK_STRIP, DEPTH = 128, PRODUCT_ROWS = 4, PRODUCT_LANES = LANES == 16 ? 4 : 2 };
enum { PRODUCT_COLUMNS = PRODUCT_LANES * LANES };
_Static_assert(STRIP % PRODUCT_COLUMNS == 0 && STRIP % LANES == 0 && DEPTH % LANES == 0, "tiles fill a strip");

/* A piece of the second factor: DEPTH rows at most of STRIP columns, those that are not there 0. */
typedef float strip[DEPTH][STRIP];

/* c[r][j] += a[r][0] b[0][j] + a[r][1] b[1][j] + ... for n_rows x PRODUCT_COLUMNS numbers of c, n_rows <= PRODUCT_ROWS.
 */
INLINE void add_product(float *c, int64_t c_stride, const float *a, int64_t a_stride, int n_rows, const float *b,
                        int depth) {
    lane_f sum[PRODUCT_ROWS][PRODUCT_LANES];
    for (int r = 0; r < n_rows; r++)
        for (int v = 0; v < PRODUCT_LANES; v++) sum[r][v] = load(c + r * c_stride + v * LANES);
    for (int i = 0; i < depth; i++) {
        lane_f second[PRODUCT_LANES];
        for (int v = 0; v < PRODUCT_LANES; v++) second[v] = load(b + i * STRIP + v * LANES);
        for (int r = 0; r < n_rows; r++) {
            const lane_f first = splat(a[r * a_stride + i]);
            for (int v = 0; v < PRODUCT_LANES; v++) sum[r][v] += first * second[v];
        }
    }
    for (int r = 0; r < n_rows; r++)
        for (int v = 0; v < PRODUCT_LANES; v++) store(c + r * c_stride + v * LANES, sum[r][v]);
}

/* The same for any number of rows, and for n_columns numbers of a row of c, n_columns <= STRIP. */
static void add_strip(float *c, int64_t c_stride, int n_columns, const float *a, int64_t a_stride, int64_t n_rows,
                      strip b, int depth) {
    for (int64_t r = 0; r < n_rows; r += PRODUCT_ROWS) {
        const int rows = n_rows - r < PRODUCT_ROWS ? (int)(n_rows - r) : PRODUCT_ROWS;
        for (int j = 0; j < n_columns; j += PRODUCT_COLUMNS) {
            float *out = c + r * c_stride + j, edge[PRODUCT_ROWS][PRODUCT_COLUMNS] = {{0}};
            const int columns = n_columns - j < PRODUCT_COLUMNS ? n_columns - j : PRODUCT_COLUMNS;
            if (rows == PRODUCT_ROWS && columns == PRODUCT_COLUMNS) {
                add_product(out, c_stride, a + r * a_stride, a_stride, PRODUCT_ROWS, &b[0][j], depth);
                continue;
            }
            for (int i = 0; i < rows; i++) memcpy(edge[i], out + i * c_stride, (size_t)columns * sizeof(float));
            for (int i = 0; i < rows; i++)
                add_product(edge[i], PRODUCT_COLUMNS, a + (r + i) * a_stride, a_stride, 1, &b[0][j], depth);
            for (int i = 0; i < rows; i++) memcpy(out + i * c_stride, edge[i], (size_t)columns * sizeof(float));
        }
    }
}
