/* kernels.h: what one instruction set offers, a table of them, and how isa/ fills it. */
#ifndef QUANTKIT_KERNELS_H
#define QUANTKIT_KERNELS_H

#include <stdint.h>

#include "quantkit.h"

/* Small functions are inlined into every width, so that constants of a type reach the searches. */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* How a type's codes are told apart from its scales: weight = step * (code - zero) - offset, with a step and an offset
 * for each run of so many weights. */
typedef struct {
    int run, max_code, zero;
    void (*scales)(const uint8_t *block, float *step, float *offset);
    void (*put_codes)(const uint8_t *q, uint8_t *block); /* all of a block's, in place of what it has */
} qk_coding;

typedef struct {
    qk_type type;
    int64_t block_weights, block_bytes;
    /* At most QK_MAX_ROWS rows; importance is NULL or n_columns floats. */
    void (*encode)(const float *rows, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out);
    void (*decode)(const uint8_t *in, int64_t n_blocks, float *x);
    const qk_coding
        *coding; /* NULL where a weight is its own block, and for Q8_0, whose errors are too small to feed */
} qk_kernel;

enum { QK_N_KERNELS = 13, QK_MAX_ROWS = 16, QK_GROUP_ROWS = 128 };

typedef int64_t qk_find_unfit(const float *x, int64_t n, float limit); /* see unfit.h */
typedef void qk_add_low_rank_fn(float *rows, int64_t n_rows, int64_t n_columns, const float *coefficients,
                                const float *basis, int64_t rank, float scale); /* see low_rank.h */
typedef void qk_row_norms_fn(const float *rows, int64_t n_rows, int64_t n_columns, float *norms);

/* qk_encode_feedback() for QK_GROUP_ROWS rows at most; the flat index of the first unfit value, or -1. See feedback.h
 */
typedef int64_t qk_feed_back_fn(const qk_kernel *type, const float *rows, int64_t n_rows, int64_t n_columns,
                                const uint8_t *order, const float *factor, const float *importance, float limit,
                                float *errors, uint8_t *blocks);

/* qk_factor() with sound arguments; the first column whose pivot is not above least, or -1. See factor.h */
typedef int64_t qk_factor_rows_fn(float *matrix, int64_t n, int64_t first, int64_t row, int64_t n_rows, float least);

extern const qk_kernel qk_kernels_scalar[QK_N_KERNELS];
extern const qk_kernel qk_kernels_baseline[QK_N_KERNELS];
extern const qk_kernel qk_kernels_avx2[QK_N_KERNELS];
extern const qk_kernel qk_kernels_avx512[QK_N_KERNELS];
extern const qk_kernel qk_kernels_neon[QK_N_KERNELS];

extern qk_find_unfit qk_find_unfit_scalar, qk_find_unfit_baseline, qk_find_unfit_avx2, qk_find_unfit_avx512,
    qk_find_unfit_neon;
extern qk_feed_back_fn qk_feed_back_scalar, qk_feed_back_baseline, qk_feed_back_avx2, qk_feed_back_avx512,
    qk_feed_back_neon;
extern qk_factor_rows_fn qk_factor_rows_scalar, qk_factor_rows_baseline, qk_factor_rows_avx2, qk_factor_rows_avx512,
    qk_factor_rows_neon;

extern qk_add_low_rank_fn qk_add_low_rank_scalar, qk_add_low_rank_baseline, qk_add_low_rank_avx2,
    qk_add_low_rank_avx512, qk_add_low_rank_neon;

extern qk_row_norms_fn qk_row_norms_scalar, qk_row_norms_baseline, qk_row_norms_avx2, qk_row_norms_avx512,
    qk_row_norms_neon;

#endif
