/* quantkit.h: the whole C interface of the kernels.
 *
 * - Shapes: rows are dense and in C order: value (r, c) of n_rows x n_columns floats stands at index r * n_columns + c.
 *   n_columns is a multiple of the type's block. Blocks are dense too: qk_row_bytes() bytes a row.
 * - Alignment: of float for rows; none for blocks.
 * - Aliasing: input and output must not overlap.
 * - Threads: every function may run in any number of threads at once, except qk_use(), which is called before them. A
 *   call keeps no state and allocates nothing. It sets round-to-nearest with denormals on and restores the caller's
 *   floating-point mode on return.
 * - Errors: a negative qk_status; nothing is printed, nothing aborts. On an error the contents of the output are
 *   unspecified, but only bytes inside it have been written.
 * - Not promised: the time a call takes, anything about values beyond the limit given to qk_encode(), ABI across major
 *   versions.
 */
#ifndef QUANTKIT_H
#define QUANTKIT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ggml's numbers of the tensor types. */
typedef enum {
    QK_F32 = 0,
    QK_F16 = 1,
    QK_Q4_0 = 2,
    QK_Q4_1 = 3,
    QK_Q5_0 = 6,
    QK_Q5_1 = 7,
    QK_Q8_0 = 8,
    QK_Q2_K = 10,
    QK_Q3_K = 11,
    QK_Q4_K = 12,
    QK_Q5_K = 13,
    QK_Q6_K = 14,
    QK_BF16 = 30,
} qk_type;

typedef enum {
    QK_OK = 0,
    QK_UNKNOWN_TYPE = -1, /* no kernel for this type */
    QK_BAD_SHAPE = -2,    /* negative count, or a row that is not a whole number of blocks */
    QK_UNFIT = -3,        /* a value is NaN, infinite or beyond the limit; its index is reported */
    QK_UNKNOWN_ISA = -4,  /* no such instruction set in this build, or not on this processor */
} qk_status;

/* Bytes of one packed row of n_columns values, or a negative qk_status. */
int64_t qk_row_bytes(qk_type type, int64_t n_columns);

/* Pack n_rows x n_columns floats into n_rows * qk_row_bytes() bytes.
 * importance is NULL, or n_columns weights >= 0: how much each column counts in the squared error (F32, F16, BF16 and
 * Q8_0 come out the same with any). Every |value| must be <= limit. Else QK_UNFIT is returned and *unfit is the flat
 * index of the first that is not. */
qk_status qk_encode(qk_type type, const float *rows, int64_t n_rows, int64_t n_columns, const float *importance,
                    float limit, uint8_t *blocks, int64_t *unfit);

/* The same with error feedback, for the types with scales and codes but Q8_0 (others: QK_UNKNOWN_TYPE): every column is
 * rounded as near as its block allows to what the errors of the columns before it make of it.
 *
 *     corrected_j = weight_j + e_0 M_0j + e_1 M_1j + ... + e_{j-1} M_{j-1,j},      e_i = weight_i - value_i,
 *
 * added in this order in float32. Columns are numbered here as they are rounded: panel by panel of QK_PANEL columns,
 * the last of them narrower, and within a panel as order says, n_columns numbers of columns counted from their panel's
 * first. factor is n_columns x n_columns: M_ij where i < j, and how much column i's last error counts, D_i, where i =
 * j; the rest is not read. The scales of a panel are those of qk_encode() for its corrected weights as they stand
 * before any of it is rounded, as a row of their own, with importance, which is in the order of the rows; then, twice,
 * for what its columns were asked to be when they were rounded so. Of these three a row keeps the first with the least
 * sum of D_j (corrected_j - value_j)^2. Every |corrected| must at first be <= limit too; of those that are not,
 * QK_UNFIT reports one. errors is scratch of the size of rows. Else as qk_encode(); which rows share a call does not
 * matter. QK_BAD_SHAPE if order is none. */
enum { QK_PANEL = 256 };
qk_status qk_encode_feedback(qk_type type, const float *rows, int64_t n_rows, int64_t n_columns, const uint8_t *order,
                             const float *factor, const float *importance, float limit, float *errors, uint8_t *blocks,
                             int64_t *unfit);

/* A step of H = G G^T with G upper triangular, in place in the upper triangle of the n x n matrix H; all of it is to be
 * finite, and what is below the diagonal is overwritten with nothing of use. Strips of QK_STRIP columns, the last of
 * them narrower, are done from the last to the first: first the strip's own rows in one call (row = first, n_rows = its
 * width), then those above it, in any pieces and threads. QK_UNFIT is returned where a pivot is not above least, and
 * *column is its column. */
enum { QK_STRIP = 64 };
qk_status qk_factor(float *matrix, int64_t n, int64_t first, int64_t row, int64_t n_rows, float least, int64_t *column);

/* Unpack n_rows x n_columns floats from n_rows * qk_row_bytes() bytes. Any bytes are decoded, NaN scales included. */
qk_status qk_decode(qk_type type, const uint8_t *blocks, int64_t n_rows, int64_t n_columns, float *rows);

/* Add scale * (coefficients x basis) to n_rows x n_columns floats: coefficients are n_rows x rank, basis rank x
 * n_columns. Each element's sum begins at 0 and takes its products by rank; every product and sum is rounded to float.
 */
qk_status qk_add_low_rank(float *rows, int64_t n_rows, int64_t n_columns, const float *coefficients, const float *basis,
                          int64_t rank, float scale);

/* The Euclidean norm of each row into n_rows floats: squares added in index order, from 0. */
qk_status qk_row_norms(const float *rows, int64_t n_rows, int64_t n_columns, float *norms);

/* The instruction sets that this build has and this processor can run, slowest first; the last is the default.
 * qk_isa_name() returns NULL from qk_n_isas() on. */
int qk_n_isas(void);
const char *qk_isa_name(int i);

/* Use the instruction set called name from now on, NULL for the default. */
qk_status qk_use(const char *name);

/* The name of the instruction set in use. */
const char *qk_isa(void);

#ifdef __cplusplus
}
#endif
#endif
