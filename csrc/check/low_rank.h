/* low_rank.h: the kernels of ../low_rank.h, fed from stdin. */
#ifndef QK_CHECK_LOW_RANK_H
#define QK_CHECK_LOW_RANK_H

#include <stdint.h>

/* stdin: float32 rows, coefficients, basis; stdout: the rows with 0.37 times the product added, and their norms. */
void low_rank(int64_t n_rows, int64_t n_columns, int64_t rank);

#endif
