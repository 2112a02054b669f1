/* dispatch.c: choose a table of kernels once, check every call, and keep the floating-point mode. */
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

typedef struct {
    const char *name;
    const qk_kernel *kernels;
} instruction_set;

/* What this build has and this processor can run, slowest first. */
static int available(instruction_set list[static 4]) {
    int n = 0;
    list[n++] = (instruction_set){"scalar", qk_kernels_scalar};
#if defined(__GNUC__) && !defined(QK_NO_VECTOR_EXTENSIONS) /* the test of other compilers' builds defines it */
#if defined(__aarch64__)
    list[n++] = (instruction_set){"neon", qk_kernels_neon};
#else
    list[n++] = (instruction_set){"baseline", qk_kernels_baseline};
#endif
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) list[n++] = (instruction_set){"avx2", qk_kernels_avx2};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        list[n++] = (instruction_set){"avx512", qk_kernels_avx512};
#endif
#endif
    return n;
}

static _Atomic(int) chosen = -1; /* index into available(); -1 is the last */

int qk_n_isas(void) {
    instruction_set list[4];
    return available(list);
}

const char *qk_isa_name(int i) {
    instruction_set list[4] = {{0}}; /* some compilers do not see that no entry beyond n is read */
    return i >= 0 && i < available(list) ? list[i].name : NULL;
}

static instruction_set in_use(void) {
    instruction_set list[4];
    const int n = available(list), i = atomic_load(&chosen);
    return list[i < 0 ? n - 1 : i];
}

const char *qk_isa(void) { return in_use().name; }

qk_status qk_use(const char *name) {
    if (name == NULL) {
        atomic_store(&chosen, -1);
        return QK_OK;
    }
    for (int i = 0; i < qk_n_isas(); i++) {
        if (strcmp(qk_isa_name(i), name) == 0) {
            atomic_store(&chosen, i);
            return QK_OK;
        }
    }
    return QK_UNKNOWN_ISA;
}

static const qk_kernel *find(qk_type type) {
    const qk_kernel *kernels = in_use().kernels;
    for (int i = 0; i < QK_N_KERNELS; i++)
        if (kernels[i].type == type) return &kernels[i];
    return NULL;
}

int64_t qk_row_bytes(qk_type type, int64_t n_columns) {
    const qk_kernel *kernel = find(type);
    if (kernel == NULL) return QK_UNKNOWN_TYPE;
    if (n_columns < 0 || n_columns % kernel->block_weights != 0) return QK_BAD_SHAPE;
    return n_columns / kernel->block_weights * kernel->block_bytes;
}

/* Round to nearest, denormals kept: the mode all kernels are written for. Returns the mode to restore. */
#if defined(__x86_64__) || defined(_M_X64)
typedef unsigned float_mode;
static float_mode enter_float_mode(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before & ~(0x6000u | 0x8000u | 0x0040u)); /* rounding control, flush to zero, denormals are zero */
    return before;
}
static void leave_float_mode(float_mode before) { _mm_setcsr(before); }
#elif defined(__aarch64__)
typedef uint64_t float_mode;
static float_mode enter_float_mode(void) {
    float_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    const float_mode plain = before & ~(UINT64_C(3) << 22 | UINT64_C(1) << 24); /* rounding mode, flush to zero */
    __asm__ volatile("msr fpcr, %0" ::"r"(plain));
    return before;
}
static void leave_float_mode(float_mode before) { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
#else
#include <fenv.h>
typedef int float_mode;
static float_mode enter_float_mode(void) {
    const int before = fegetround();
    fesetround(FE_TONEAREST);
    return before;
}
static void leave_float_mode(float_mode before) { fesetround(before); }
#endif

/* The index of the first value that is NaN or beyond limit in magnitude, or n. Magnitudes compare like their bits, and
 * NaN lies above every number; a whole stretch is looked at before its place is sought, so that the search is rare. */
static int64_t find_unfit(const float *x, int64_t n, float limit) {
    enum { STRETCH = 1024 };
    uint32_t limit_bits;
    memcpy(&limit_bits, &limit, sizeof limit_bits);
    for (int64_t start = 0; start < n; start += STRETCH) {
        const int64_t stop = n - start < STRETCH ? n : start + STRETCH;
        uint32_t largest = 0;
        for (int64_t i = start; i < stop; i++) {
            uint32_t bits;
            memcpy(&bits, &x[i], sizeof bits);
            bits &= 0x7fffffff;
            largest = bits > largest ? bits : largest;
        }
        if (largest <= limit_bits) continue;
        for (int64_t i = start; i < stop; i++) {
            uint32_t bits;
            memcpy(&bits, &x[i], sizeof bits);
            if ((bits & 0x7fffffff) > limit_bits) return i;
        }
    }
    return n;
}

qk_status qk_encode(qk_type type, const float *rows, int64_t n_rows, int64_t n_columns, const float *importance,
                    float limit, uint8_t *blocks, int64_t *unfit) {
    const qk_kernel *kernel = find(type);
    if (kernel == NULL) return QK_UNKNOWN_TYPE;
    const int64_t row_bytes = qk_row_bytes(type, n_columns);
    if (row_bytes < 0 || n_rows < 0) return QK_BAD_SHAPE;
    qk_status status = QK_OK;
    const float_mode mode = enter_float_mode();
    for (int64_t row = 0; row < n_rows; row += QK_MAX_ROWS) { /* few rows: what the check reads stays in the cache */
        const int64_t n = n_rows - row < QK_MAX_ROWS ? n_rows - row : QK_MAX_ROWS;
        const float *x = rows + row * n_columns;
        const int64_t at = find_unfit(x, n * n_columns, limit);
        if (at < n * n_columns) {
            *unfit = row * n_columns + at;
            status = QK_UNFIT;
            break;
        }
        kernel->encode(x, n, n_columns, importance, blocks + row * row_bytes);
    }
    leave_float_mode(mode);
    return status;
}

qk_status qk_decode(qk_type type, const uint8_t *blocks, int64_t n_rows, int64_t n_columns, float *rows) {
    const qk_kernel *kernel = find(type);
    if (kernel == NULL) return QK_UNKNOWN_TYPE;
    if (qk_row_bytes(type, n_columns) < 0 || n_rows < 0) return QK_BAD_SHAPE;
    const float_mode mode = enter_float_mode();
    kernel->decode(blocks, n_rows * n_columns / kernel->block_weights, rows);
    leave_float_mode(mode);
    return QK_OK;
}
