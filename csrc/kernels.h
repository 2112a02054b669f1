/* kernels.h: what one instruction set offers, a table of them, and how isa/ fills it. */
#ifndef QUANTKIT_KERNELS_H
#define QUANTKIT_KERNELS_H

#include <stdint.h>

#include "quantkit.h"

typedef struct {
    qk_type type;
    int64_t block_weights, block_bytes;
    void (*encode)(const float *x, int64_t n_blocks, uint8_t *out);
    void (*decode)(const uint8_t *in, int64_t n_blocks, float *x);
} qk_kernel;

enum { QK_N_KERNELS = 7 };

extern const qk_kernel qk_kernels_scalar[QK_N_KERNELS];
extern const qk_kernel qk_kernels_baseline[QK_N_KERNELS];
extern const qk_kernel qk_kernels_avx2[QK_N_KERNELS];
extern const qk_kernel qk_kernels_avx512[QK_N_KERNELS];
extern const qk_kernel qk_kernels_neon[QK_N_KERNELS];

#endif
