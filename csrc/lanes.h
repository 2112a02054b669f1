/* lanes.h: LANES floats side by side, and the few operations the encoders need on them. Nothing else
 * knows how they are made.
 *
 * The file that includes this one has set LANES to 1, 4, 8 or 16. LANES 1 is plain C11; the others use the vector
 * extensions that GCC and Clang share, with an intrinsic where the generic form compiles badly.
 *
 * Each operation does to every lane what the scalar expression in its comment does to one number. No operation mixes
 * lanes, except transpose(), which only moves them.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Adding 1.5 * 2^23 leaves a float's integer part, rounded half to even, in the low 23 bits of its representation. For
 * |x| > 4194303, infinity and NaN those bits mean nothing, but they are the same bits on every machine; NaN gives 0. */
#define ROUNDING_MAGIC 12582912.0f
#define MANTISSA_MASK 0x007fffff
#define MANTISSA_HALF 0x00400000
#define EXPONENT_OF_2_23 0x4b000000

INLINE int32_t nearest_int(float x) {
    float shifted = x + ROUNDING_MAGIC;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (bits & MANTISSA_MASK) - MANTISSA_HALF;
}

#if LANES == 1

typedef float lane_f;
typedef int32_t lane_i;
typedef uint32_t lane_u;
typedef bool lane_mask;

INLINE lane_f splat(float x) { return x; }
INLINE lane_f load(const float *p) { return *p; }
INLINE void store(float *p, lane_f a) { *p = a; }
INLINE void store_i(int32_t *p, lane_i a) { *p = a; }
INLINE void store_u(uint32_t *p, lane_u a) { *p = a; }
/* The LANES bytes at p, each a number 0..255. */
INLINE lane_i load_u8(const uint8_t *p) { return *p; }
/* Lane j: value where bit j of bits is set, else 0. */
INLINE lane_i bit_lanes(uint32_t bits, int32_t value) { return bits & 1 ? value : 0; }
INLINE lane_mask lt(lane_f a, lane_f b) { return a < b; }
INLINE lane_mask gt(lane_f a, lane_f b) { return a > b; }
INLINE lane_mask eq(lane_f a, lane_f b) { return a == b; }
INLINE lane_mask not_eq (lane_f a, lane_f b) { return a != b; }
INLINE lane_mask both(lane_mask a, lane_mask b) { return a && b; }
INLINE lane_mask either(lane_mask a, lane_mask b) { return a || b; }
INLINE bool any(lane_mask m) { return m; }
INLINE bool all(lane_mask m) { return m; }
INLINE lane_f pick(lane_mask m, lane_f a, lane_f b) { return m ? a : b; }
INLINE lane_i pick_i(lane_mask m, lane_i a, lane_i b) { return m ? a : b; }
INLINE lane_f absolute(lane_f a) { return fabsf(a); }
/* b where either is NaN or both are zeros, as the x86 instructions have it. */
INLINE lane_f smaller(lane_f a, lane_f b) { return a < b ? a : b; }
INLINE lane_f larger(lane_f a, lane_f b) { return a > b ? a : b; }
INLINE lane_f root(lane_f a) { return sqrtf(a); }
INLINE lane_i nearest(lane_f a) { return nearest_int(a); }
INLINE lane_f to_float(lane_i a) { return (float)a; }
INLINE lane_f nearest_float(lane_f a) { return to_float(nearest(a)); }
INLINE lane_i truncated(lane_f a) { return (lane_i)a; }
INLINE lane_i at_most(lane_i a, int high) { return a > high ? high : a; }
INLINE lane_i clamp(lane_i a, int low, int high) { return a < low ? low : at_most(a, high); }
INLINE void transpose(lane_f *a) { (void)a; }

#else

typedef float lane_f __attribute__((vector_size(4 * LANES)));
typedef int32_t lane_i __attribute__((vector_size(4 * LANES)));
typedef uint32_t lane_u __attribute__((vector_size(4 * LANES))); /* may be shifted into its highest bit */

/* x - 0 is x for every x, which costs nothing; -0 + 0 is 0. */
INLINE lane_f splat(float x) { return x - (lane_f){0}; }
INLINE lane_i splat_i(int32_t x) { return (lane_i){0} + x; }
INLINE lane_f load(const float *p) {
    lane_f a;
    memcpy(&a, p, sizeof a);
    return a;
}
INLINE void store(float *p, lane_f a) { memcpy(p, &a, sizeof a); }
INLINE void store_i(int32_t *p, lane_i a) { memcpy(p, &a, sizeof a); }
INLINE void store_u(uint32_t *p, lane_u a) { memcpy(p, &a, sizeof a); }
INLINE lane_f to_float(lane_i a) { return __builtin_convertvector(a, lane_f); }
INLINE lane_i truncated(lane_f a) { return __builtin_convertvector(a, lane_i); }
INLINE lane_f absolute(lane_f a) { return (lane_f)((lane_i)a & 0x7fffffff); }
INLINE lane_i nearest(lane_f a) { return ((lane_i)(a + ROUNDING_MAGIC) & MANTISSA_MASK) - MANTISSA_HALF; }
/* to_float(nearest(a)), by giving the low 23 bits the exponent of 2^23. */
INLINE lane_f nearest_float(lane_f a) {
    return (lane_f)(((lane_i)(a + ROUNDING_MAGIC) & MANTISSA_MASK) | EXPONENT_OF_2_23) - ROUNDING_MAGIC;
}

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if LANES == 16 && defined(__AVX512F__)
typedef __mmask16 lane_mask;

/* Comparisons are false where either side is NaN, but for not_eq. */
INLINE lane_mask lt(lane_f a, lane_f b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
INLINE lane_mask gt(lane_f a, lane_f b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
INLINE lane_mask eq(lane_f a, lane_f b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
INLINE lane_mask not_eq (lane_f a, lane_f b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_UQ); }
INLINE lane_mask both(lane_mask a, lane_mask b) { return a & b; }
INLINE lane_mask either(lane_mask a, lane_mask b) { return a | b; }
INLINE bool any(lane_mask m) { return m != 0; }
INLINE bool all(lane_mask m) { return m == 0xffff; }
INLINE lane_f pick(lane_mask m, lane_f a, lane_f b) { return (lane_f)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
INLINE lane_i pick_i(lane_mask m, lane_i a, lane_i b) {
    return (lane_i)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a);
}
INLINE lane_f smaller(lane_f a, lane_f b) { return (lane_f)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE lane_f larger(lane_f a, lane_f b) { return (lane_f)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE lane_f root(lane_f a) { return (lane_f)_mm512_sqrt_ps((__m512)a); }
INLINE lane_i at_most(lane_i a, int high) { return (lane_i)_mm512_min_epi32((__m512i)a, _mm512_set1_epi32(high)); }
INLINE lane_i clamp(lane_i a, int low, int high) {
    return (lane_i)_mm512_max_epi32((__m512i)at_most(a, high), _mm512_set1_epi32(low));
}
INLINE lane_i load_u8(const uint8_t *p) { return (lane_i)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE lane_i bit_lanes(uint32_t bits, int32_t value) {
    return (lane_i)_mm512_maskz_set1_epi32((__mmask16)bits, value);
}

#else
typedef lane_i lane_mask; /* all bits set where true */

INLINE lane_mask lt(lane_f a, lane_f b) { return a < b; }
INLINE lane_mask gt(lane_f a, lane_f b) { return a > b; }
INLINE lane_mask eq(lane_f a, lane_f b) { return a == b; }
INLINE lane_mask not_eq (lane_f a, lane_f b) { return a != b; }
INLINE lane_mask both(lane_mask a, lane_mask b) { return a & b; }
INLINE lane_mask either(lane_mask a, lane_mask b) { return a | b; }
INLINE lane_i bit_lanes(uint32_t bits, int32_t value) {
    lane_i place;
    for (int j = 0; j < LANES; j++) place[j] = 1 << j;
    return (lane_i)((splat_i((int32_t)bits) & place) != 0) & value;
}

#if LANES == 8 && defined(__AVX2__)
INLINE bool any(lane_mask m) { return _mm256_movemask_ps((__m256)m) != 0; }
INLINE bool all(lane_mask m) { return _mm256_movemask_ps((__m256)m) == 0xff; }
INLINE lane_f pick(lane_mask m, lane_f a, lane_f b) {
    return (lane_f)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m);
}
INLINE lane_i pick_i(lane_mask m, lane_i a, lane_i b) { return (lane_i)pick(m, (lane_f)a, (lane_f)b); }
INLINE lane_f smaller(lane_f a, lane_f b) { return (lane_f)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE lane_f larger(lane_f a, lane_f b) { return (lane_f)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE lane_f root(lane_f a) { return (lane_f)_mm256_sqrt_ps((__m256)a); }
INLINE lane_i at_most(lane_i a, int high) { return (lane_i)_mm256_min_epi32((__m256i)a, _mm256_set1_epi32(high)); }
INLINE lane_i clamp(lane_i a, int low, int high) {
    return (lane_i)_mm256_max_epi32((__m256i)at_most(a, high), _mm256_set1_epi32(low));
}
INLINE lane_i load_u8(const uint8_t *p) { return (lane_i)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }

#else
INLINE bool any(lane_mask m) {
    static const lane_mask none;
    return memcmp(&m, &none, sizeof m) != 0;
}
INLINE bool all(lane_mask m) { return !any(~m); }
INLINE lane_i pick_i(lane_mask m, lane_i a, lane_i b) { return (a & m) | (b & ~m); }
INLINE lane_f pick(lane_mask m, lane_f a, lane_f b) { return (lane_f)pick_i(m, (lane_i)a, (lane_i)b); }
INLINE lane_i at_most(lane_i a, int high) { return pick_i(a > high, splat_i(high), a); }
INLINE lane_i clamp(lane_i a, int low, int high) {
    a = at_most(a, high);
    return pick_i(a < low, splat_i(low), a);
}

#if LANES == 4 && defined(__SSE2__)
INLINE lane_f smaller(lane_f a, lane_f b) { return (lane_f)_mm_min_ps((__m128)a, (__m128)b); }
INLINE lane_f larger(lane_f a, lane_f b) { return (lane_f)_mm_max_ps((__m128)a, (__m128)b); }
INLINE lane_f root(lane_f a) { return (lane_f)_mm_sqrt_ps((__m128)a); }
INLINE lane_i load_u8(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    const __m128i zero = _mm_setzero_si128();
    return (lane_i)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero);
}
#else
INLINE lane_f smaller(lane_f a, lane_f b) { return pick(lt(a, b), a, b); }
INLINE lane_f larger(lane_f a, lane_f b) { return pick(gt(a, b), a, b); }
INLINE lane_i load_u8(const uint8_t *p) {
    typedef uint8_t lane_bytes __attribute__((vector_size(LANES)));
    lane_bytes bytes;
    memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, lane_i);
}
#if LANES == 4 && defined(__aarch64__)
INLINE lane_f root(lane_f a) { return (lane_f)vsqrtq_f32((float32x4_t)a); }
#else
INLINE lane_f root(lane_f a) {
    for (int i = 0; i < LANES; i++) a[i] = sqrtf(a[i]);
    return a;
}
#endif
#endif
#endif
#endif

/* Zipping the first half of the registers with the second, log2(LANES) times, transposes a square of them. AVX2 zips
 * only within halves of a register: there the halves change places first, then four registers zip as for 4 lanes. */
#if LANES == 4
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#elif LANES == 8
#define ZIP_LOW 0, 8, 1, 9, 4, 12, 5, 13
#define ZIP_HIGH 2, 10, 3, 11, 6, 14, 7, 15
#define LOW_HALVES 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH_HALVES 4, 5, 6, 7, 12, 13, 14, 15
#elif LANES == 16
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (lane_i){__VA_ARGS__})
#endif

/* a[i] lane j <-> a[j] lane i, for LANES registers. */
INLINE void transpose(lane_f *a) {
    enum { SQUARE = LANES == 8 ? 4 : LANES };
    lane_f moved[LANES];
#if LANES == 8
    for (int i = 0; i < 4; i++) {
        moved[i] = SHUFFLE(a[i], a[i + 4], LOW_HALVES);
        moved[i + 4] = SHUFFLE(a[i], a[i + 4], HIGH_HALVES);
    }
    memcpy(a, moved, sizeof moved);
#endif
    for (int width = 1; width < SQUARE; width *= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            const int from = i / (SQUARE / 2) * SQUARE + i % (SQUARE / 2);
            moved[2 * i] = SHUFFLE(a[from], a[from + SQUARE / 2], ZIP_LOW);
            moved[2 * i + 1] = SHUFFLE(a[from], a[from + SQUARE / 2], ZIP_HIGH);
        }
        memcpy(a, moved, sizeof moved);
    }
}

#endif

/* a < low ? low : a > high ? high : a, low <= 0 <= high; not for NaN, and -0 may stand for 0. On x86 a clamp of floats
 * competes with additions for the same execution units, and one of integers does not: positive floats compare as their
 * bits do, negative ones in reverse, and as unsigned numbers above all positive ones. */
INLINE lane_f within(lane_f a, int low, int high) {
    const lane_f least = -splat((float)-low), most = splat((float)high);
#if LANES == 16 && defined(__AVX512F__)
    return (lane_f)_mm512_min_epu32(_mm512_min_epi32((__m512i)a, (__m512i)most), (__m512i)least);
#elif LANES == 8 && defined(__AVX2__)
    return (lane_f)_mm256_min_epu32(_mm256_min_epi32((__m256i)a, (__m256i)most), (__m256i)least);
#else
    return smaller(larger(a, least), most);
#endif
}

/* to_float(nearest(a)) for |a| <= 4194303 alone; -0 may stand for 0. */
INLINE lane_f nearest_moderate(lane_f a) {
#if LANES == 16 && defined(__AVX512F__)
    return (lane_f)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT);
#elif LANES == 8 && defined(__AVX2__)
    return (lane_f)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT);
#else
    return (a + ROUNDING_MAGIC) - ROUNDING_MAGIC;
#endif
}

/* The LANES bytes at p, each a number -128..127. */
INLINE lane_i load_i8(const uint8_t *p) {
#if LANES == 16 && defined(__AVX512F__)
    return (lane_i)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif LANES == 8 && defined(__AVX2__)
    return (lane_i)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    return (load_u8(p) ^ 128) - 128;
#endif
}

/* One lane a run of n consecutive floats, n a multiple of 16: a[i] lane j = runs[j * n + i]. */
INLINE void load_runs(const float *runs, int n, lane_f *a) {
    for (int i = 0; i < n; i += LANES) {
        for (int j = 0; j < LANES; j++) a[i + j] = load(runs + j * n + i);
        transpose(a + i);
    }
}

/* The way back for codes 0..255: runs[j * n + i] = a[i] lane j. Four codes travel as the bytes of one lane. */
INLINE void store_code_runs(uint8_t *runs, int n, const lane_i *a) {
    uint32_t four[LANES];
    for (int i = 0; i < n; i += 4) {
        store_u(four, (lane_u)(a[i] | a[i + 1] << 8 | a[i + 2] << 16) | (lane_u)a[i + 3] << 24);
        for (int j = 0; j < LANES; j++)
            memcpy(runs + j * n + i, &four[j], 4); /* the lowest byte first: little endian */
    }
}
