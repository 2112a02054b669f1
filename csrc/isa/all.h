/* Included once by each file of this folder, after it has set LANES and SUFFIX: every type's text at that width.
 * All of it is static but the table, so the same names serve every width. */
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

#include "../kernels.h"

#include "../floats.h"
#include "../lanes.h"

#include "../unfit.h"

#include "../chunks.h"
#include "../fit.h"
#include "../low_rank.h"

#include "../run_block.h"
#include "../scale_block.h"
#include "../scale_min_block.h"

#include "../types/plain.h"
#include "../types/q2_k.h"
#include "../types/q3_k.h"
#include "../types/q4_0.h"
#include "../types/q4_1.h"
#include "../types/q4_k.h"
#include "../types/q5_0.h"
#include "../types/q5_1.h"
#include "../types/q5_k.h"
#include "../types/q6_k.h"
#include "../types/q8_0.h"

#include "../product.h"

#include "../factor.h"
#include "../feedback.h"

const qk_kernel JOIN(qk_kernels, SUFFIX)[QK_N_KERNELS] = {
    {QK_F32, 1, 4, encode_f32, decode_f32, NULL},
    {QK_F16, 1, 2, encode_f16, decode_f16, NULL},
    {QK_BF16, 1, 2, encode_bf16, decode_bf16, NULL},
    {QK_Q4_0, BLOCK_32, Q4_0_BYTES, encode_q4_0, decode_q4_0, &q4_0_coding},
    {QK_Q4_1, BLOCK_32, Q4_1_BYTES, encode_q4_1, decode_q4_1, &q4_1_coding},
    {QK_Q5_0, BLOCK_32, Q5_0_BYTES, encode_q5_0, decode_q5_0, &q5_0_coding},
    {QK_Q5_1, BLOCK_32, Q5_1_BYTES, encode_q5_1, decode_q5_1, &q5_1_coding},
    {QK_Q8_0, BLOCK_32, Q8_0_BYTES, encode_q8_0, decode_q8_0, NULL},
    {QK_Q2_K, BLOCK_256, Q2_K_BYTES, encode_q2_k, decode_q2_k, &q2_k_coding},
    {QK_Q3_K, BLOCK_256, Q3_K_BYTES, encode_q3_k, decode_q3_k, &q3_k_coding},
    {QK_Q4_K, BLOCK_256, Q4_K_BYTES, encode_q4_k, decode_q4_k, &q4_k_coding},
    {QK_Q5_K, BLOCK_256, Q5_K_BYTES, encode_q5_k, decode_q5_k, &q5_k_coding},
    {QK_Q6_K, BLOCK_256, Q6_K_BYTES, encode_q6_k, decode_q6_k, &q6_k_coding},
};
