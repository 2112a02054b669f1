/* feedback.h: the kernels of ../factor.h and ../feedback.h, fed from stdin. */
#ifndef QK_CHECK_FEEDBACK_H
#define QK_CHECK_FEEDBACK_H

#include <stdint.h>

#include "../quantkit.h"

/* stdin: a symmetric positive definite float32 matrix, n_columns floats of importance, n_columns bytes of order,
 * float32 rows; stdout: the matrix as H = M D M^T, the blocks, and the errors. */
void feedback(qk_type type, int64_t n_rows, int64_t n_columns);

#endif
