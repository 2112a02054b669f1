/* factor.h: H = G G^T of a symmetric positive definite matrix, G upper triangular, in place.
 *
 * G is found from the last columns to the first, a strip of columns at a time,
 *     G_ij = (H_ij - sum_{p > j} G_ip G_jp) / G_jj,   i < j,        G_jj = sqrt(H_jj - sum_{p > j} G_jp^2),
 * where the sum is subtracted term by term: those beyond the strip with rising p, then those within it with falling p.
 * Rows share nothing but the strip's own, so they may be done in any number of pieces.
 */

/* Subtract what lies beyond the strip from the strip's columns of n_rows rows; h is n x n, strip at `first`. */
static void subtract_beyond(float *h, int64_t n, int64_t first, int width, int64_t row, int64_t n_rows) {
    strip b;
    memset(b, 0, sizeof b);
    for (int64_t p = first + width; p < n; p += DEPTH) {
        const int depth = n - p < DEPTH ? (int)(n - p) : DEPTH;
        for (int j = 0; j < width; j++)
            for (int i = 0; i < depth; i++) b[i][j] = -h[(first + j) * n + p + i];
        add_strip(h + row * n + first, n, width, h + row * n + p, n, n_rows, b, depth);
    }
}

/* The strip's own rows. Returns the column whose pivot is not above least, or -1. */
static int64_t factor_corner(float *h, int64_t n, int64_t first, int width, float least) {
    float *g = h + first * n + first;
    for (int j = width - 1; j >= 0; j--) {
        if (!(g[j * n + j] > least)) return first + j;
        g[j * n + j] = sqrtf(g[j * n + j]);
        for (int i = 0; i < j; i++) g[i * n + j] /= g[j * n + j];
        for (int i = 0; i < j; i++)
            for (int c = i; c < j; c++) g[i * n + c] -= g[i * n + j] * g[c * n + j];
    }
    return -1;
}

/* n_rows rows above the strip, whose own rows are done: x_j = (s_j - sum_{p > j} x_p G_jp) / G_jj, p falling. */
static void solve_rows(float *h, int64_t n, int64_t first, int width, int64_t row, int64_t n_rows) {
    enum { ROWS = 8 }; /* x_j waits for x_{j + 1}; so many rows side by side fill the time */
    float turned[STRIP][STRIP] = {{0}}, s[ROWS][STRIP] = {{0}}, x[ROWS][STRIP], pivot[STRIP];
    for (int j = 0; j < width; j++) {
        pivot[j] = h[(first + j) * n + first + j];
        for (int c = 0; c < j; c++) turned[j][c] = h[(first + c) * n + first + j];
    }
    for (const int64_t end = row + n_rows; row < end; row += ROWS) {
        const int rows = end - row < ROWS ? (int)(end - row) : ROWS;
        for (int r = 0; r < rows; r++) memcpy(s[r], h + (row + r) * n + first, (size_t)width * sizeof(float));
        for (int j = width - 1; j >= 0; j--) {
            for (int r = 0; r < rows; r++) {
                x[r][j] = s[r][j] / pivot[j];
                for (int c = 0; c < j; c += LANES) /* what is changed from j on is not looked at again */
                    store(s[r] + c, load(s[r] + c) - x[r][j] * load(turned[j] + c));
            }
        }
        for (int r = 0; r < rows; r++) memcpy(h + (row + r) * n + first, x[r], (size_t)width * sizeof(float));
    }
}

int64_t JOIN(qk_factor_rows, SUFFIX)(float *h, int64_t n, int64_t first, int64_t row, int64_t n_rows, float least) {
    const int width = n - first < STRIP ? (int)(n - first) : STRIP;
    for (int64_t done = 0; done < n_rows; done += QK_GROUP_ROWS) {
        const int64_t rows = n_rows - done < QK_GROUP_ROWS ? n_rows - done : QK_GROUP_ROWS;
        subtract_beyond(h, n, first, width, row + done, rows);
        if (row == first) return factor_corner(h, n, first, width, least);
        solve_rows(h, n, first, width, row + done, rows);
    }
    return -1;
}
