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

typedef struct {
    qk_type type;
    int64_t block_weights, block_bytes;
    /* At most QK_MAX_ROWS rows; importance is NULL or n_columns floats. */
    void (*encode)(const float *rows, int64_t n_rows, int64_t n_columns, const float *importance, uint8_t *out);
    void (*decode)(const uint8_t *in, int64_t n_blocks, float *x);
} qk_kernel;

enum { QK_N_KERNELS = 13, QK_MAX_ROWS = 16 };

typedef int64_t qk_find_unfit(const float *x, int64_t n, float limit); /* see unfit.h */
typedef void qk_add_low_rank_fn(float *rows, int64_t n_rows, int64_t n_columns, const float *coefficients,
                                const float *basis, int64_t rank, float scale); /* see low_rank.h */
typedef void qk_row_norms_fn(const float *rows, int64_t n_rows, int64_t n_columns, float *norms);

extern const qk_kernel qk_kernels_scalar[QK_N_KERNELS];
extern const qk_kernel qk_kernels_baseline[QK_N_KERNELS];
extern const qk_kernel qk_kernels_avx2[QK_N_KERNELS];
extern const qk_kernel qk_kernels_avx512[QK_N_KERNELS];
extern const qk_kernel qk_kernels_neon[QK_N_KERNELS];

extern qk_find_unfit qk_find_unfit_scalar, qk_find_unfit_baseline, qk_find_unfit_avx2, qk_find_unfit_avx512,
    qk_find_unfit_neon;

extern qk_add_low_rank_fn qk_add_low_rank_scalar, qk_add_low_rank_baseline, qk_add_low_rank_avx2,
    qk_add_low_rank_avx512, qk_add_low_rank_neon;

extern qk_row_norms_fn qk_row_norms_scalar, qk_row_norms_baseline, qk_row_norms_avx2, qk_row_norms_avx512,
    qk_row_norms_neon;

#endif
