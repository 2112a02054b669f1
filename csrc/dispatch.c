/* dispatch.c: choose a table of kernels once, check every call, and keep the floating-point mode. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

typedef struct {
    const char *name;
    const qk_kernel *kernels;
    qk_find_unfit *find_unfit;
    qk_add_low_rank_fn *add_low_rank;
    qk_row_norms_fn *row_norms;
    qk_feed_back_fn *feed_back;
    qk_factor_rows_fn *factor_rows;
} instruction_set;

#define ENTRY(isa)                                                                                                     \
    ((instruction_set){#isa, qk_kernels_##isa, qk_find_unfit_##isa, qk_add_low_rank_##isa, qk_row_norms_##isa,         \
                       qk_feed_back_##isa, qk_factor_rows_##isa})

#if defined(__x86_64__) && defined(__GNUC__) && !defined(QK_NO_VECTOR_EXTENSIONS)
#include <cpuid.h>

/* __builtin_cpu_supports does not know it in Clang 14. Asked once: a virtual machine may take long to answer. */
static bool has_f16c(void) {
    static _Atomic(int) answer = -1;
    if (atomic_load(&answer) < 0) {
        unsigned a, b, c = 0, d;
        atomic_store(&answer, __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0);
    }
    return atomic_load(&answer);
}
#endif

/* What this build has and this processor can run, slowest first. */
static int available(instruction_set list[static 4]) {
    int n = 0;
    list[n++] = ENTRY(scalar);
#if defined(__GNUC__) && !defined(QK_NO_VECTOR_EXTENSIONS) /* the test of other compilers' builds defines it */
#if defined(__aarch64__)
    list[n++] = ENTRY(neon);
#else
    list[n++] = ENTRY(baseline);
#endif
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && has_f16c()) list[n++] = ENTRY(avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && has_f16c())
        list[n++] = ENTRY(avx512);
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

/* Without importance rows do not matter, and so many values are packed at a time: whole chunks of every type. */
enum { PIECE = 8192 };

qk_status qk_encode(qk_type type, const float *rows, int64_t n_rows, int64_t n_columns, const float *importance,
                    float limit, uint8_t *blocks, int64_t *unfit) {
    const qk_kernel *kernel = find(type);
    if (kernel == NULL) return QK_UNKNOWN_TYPE;
    if (qk_row_bytes(type, n_columns) < 0 || n_rows < 0) return QK_BAD_SHAPE;
    const int64_t n = n_rows * n_columns, step = importance == NULL ? PIECE : QK_MAX_ROWS * n_columns;
    qk_find_unfit *find_unfit = in_use().find_unfit;
    qk_status status = QK_OK;
    const float_mode mode = enter_float_mode();
    for (int64_t start = 0; start < n; start += step) { /* few values: what the check reads stays in the cache */
        const int64_t size = n - start < step ? n - start : step, at = find_unfit(rows + start, size, limit);
        if (at < size) {
            *unfit = start + at;
            status = QK_UNFIT;
            break;
        }
        uint8_t *out = blocks + start / kernel->block_weights * kernel->block_bytes;
        if (importance == NULL)
            kernel->encode(rows + start, 1, size, NULL, out);
        else
            kernel->encode(rows + start, size / n_columns, n_columns, importance, out);
    }
    leave_float_mode(mode);
    return status;
}

/* Whether order has each column of each panel once. */
static bool is_order(const uint8_t *order, int64_t n_columns) {
    for (int64_t first = 0; first < n_columns; first += QK_PANEL) {
        const int width = n_columns - first < QK_PANEL ? (int)(n_columns - first) : QK_PANEL;
        bool seen[QK_PANEL] = {false};
        for (int i = 0; i < width; i++) {
            if (order[first + i] >= width || seen[order[first + i]]) return false;
            seen[order[first + i]] = true;
        }
    }
    return true;
}

qk_status qk_encode_feedback(qk_type type, const float *rows, int64_t n_rows, int64_t n_columns, const uint8_t *order,
                             const float *factor, const float *importance, float limit, float *errors, uint8_t *blocks,
                             int64_t *unfit) {
    const qk_kernel *kernel = find(type);
    if (kernel == NULL || kernel->coding == NULL) return QK_UNKNOWN_TYPE;
    const int64_t row_bytes = qk_row_bytes(type, n_columns);
    if (row_bytes < 0 || n_rows < 0 || !is_order(order, n_columns)) return QK_BAD_SHAPE;
    qk_feed_back_fn *feed_back = in_use().feed_back;
    qk_status status = QK_OK;
    const float_mode mode = enter_float_mode();
    const int64_t n = n_rows * n_columns, bad = in_use().find_unfit(rows, n, limit);
    if (bad < n) {
        *unfit = bad;
        status = QK_UNFIT;
    }
    for (int64_t row = 0; row < n_rows && status == QK_OK; row += QK_GROUP_ROWS) {
        const int64_t some = n_rows - row < QK_GROUP_ROWS ? n_rows - row : QK_GROUP_ROWS, at = row * n_columns;
        const int64_t found = feed_back(kernel, rows + at, some, n_columns, order, factor, importance, limit,
                                        errors + at, blocks + row * row_bytes);
        if (found >= 0) {
            *unfit = at + found;
            status = QK_UNFIT;
        }
    }
    leave_float_mode(mode);
    return status;
}

qk_status qk_factor(float *matrix, int64_t n, int64_t first, int64_t row, int64_t n_rows, float least,
                    int64_t *column) {
    const int64_t width = n - first < QK_STRIP ? n - first : QK_STRIP;
    const bool is_corner = row == first && n_rows == width, is_above = n_rows >= 0 && row >= 0 && row + n_rows <= first;
    if (first < 0 || first >= n || first % QK_STRIP != 0 || !(is_corner || is_above)) return QK_BAD_SHAPE;
    const float_mode mode = enter_float_mode();
    *column = in_use().factor_rows(matrix, n, first, row, n_rows, least);
    leave_float_mode(mode);
    return *column < 0 ? QK_OK : QK_UNFIT;
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

qk_status qk_add_low_rank(float *rows, int64_t n_rows, int64_t n_columns, const float *coefficients, const float *basis,
                          int64_t rank, float scale) {
    if (n_rows < 0 || n_columns < 0 || rank < 0) return QK_BAD_SHAPE;
    const float_mode mode = enter_float_mode();
    in_use().add_low_rank(rows, n_rows, n_columns, coefficients, basis, rank, scale);
    leave_float_mode(mode);
    return QK_OK;
}

qk_status qk_row_norms(const float *rows, int64_t n_rows, int64_t n_columns, float *norms) {
    if (n_rows < 0 || n_columns < 0) return QK_BAD_SHAPE;
    const float_mode mode = enter_float_mode();
    in_use().row_norms(rows, n_rows, n_columns, norms);
    leave_float_mode(mode);
    return QK_OK;
}
