/* Included once by each file of this folder, after it has set LANES and SUFFIX: every type's text at that width. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, SUFFIX)

#include "../kernels.h"

#include "../floats.h"
#include "../lanes.h"

#include "../fit.h"
#include "../types/plain.h"
#include "../types/q4_k.h"
#include "../types/q6_k.h"
#include "../types/q8_0.h"

const qk_kernel NAME(qk_kernels)[QK_N_KERNELS] = {
    {QK_F32, 1, 4, NAME(encode_f32), NAME(decode_f32)},
    {QK_F16, 1, 2, NAME(encode_f16), NAME(decode_f16)},
    {QK_Q8_0, Q8_0_WEIGHTS, Q8_0_BYTES, NAME(encode_q8_0), NAME(decode_q8_0)},
    {QK_Q4_K, Q4_K_WEIGHTS, Q4_K_BYTES, NAME(encode_q4_k), NAME(decode_q4_k)},
    {QK_Q6_K, Q6_K_WEIGHTS, Q6_K_BYTES, NAME(encode_q6_k), NAME(decode_q6_k)},
    {QK_BF16, 1, 2, NAME(encode_bf16), NAME(decode_bf16)},
};
