/* floats.h: float32 to float16 and bfloat16 and back, branch-free so that compilers turn loops of them into vectors.
 * Where the processor has F16C, its instructions do the same to eight at a time; NaN, which they change, goes the
 * portable way. */
#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

INLINE uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float bits_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Round to nearest, ties to even; overflow to infinity; NaN to a quiet NaN.
 * From 2^-14 on (normal halves) the exponent is rebased by 112 and the low 13 bits are rounded away. Below, adding 0.5
 * aligns the value so that the sum's last bits count steps of 2^-24, the unit of subnormal halves. */
INLINE uint16_t f16_from_f32(float x) {
    const uint32_t bits = float_bits(x);
    const uint32_t magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude - (112u << 23) + 0x0fff + (magnitude >> 13 & 1)) >> 13;
    const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
    uint32_t half = magnitude < 113u << 23 ? subnormal : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half; /* 65520, half a step above the largest half */
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return (uint16_t)(half | (bits >> 16 & 0x8000));
}

/* NaN keeps its bits. */
INLINE float f32_from_f16_portable(uint16_t half) {
    const uint32_t magnitude = half & 0x7fff;
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t subnormal = float_bits((float)(int32_t)magnitude * 0x1p-24f);
    const uint32_t special = 0x7f800000 | magnitude << 13;
    uint32_t bits = magnitude < 0x0400 ? subnormal : normal;
    bits = magnitude >= 0x7c00 ? special : bits;
    return bits_float(bits | (uint32_t)(half & 0x8000) << 16);
}

/* For scales: a NaN may come out quiet, as it does from any multiplication. */
INLINE float f32_from_f16(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    return f32_from_f16_portable(half);
#endif
}

/* Round to nearest, ties to even; NaN to a quiet NaN. */
INLINE uint16_t bf16_from_f32(float x) {
    const uint32_t bits = float_bits(x);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 64 : rounded);
}

INLINE float f32_from_bf16(uint16_t half) { return bits_float((uint32_t)half << 16); }

/* Unaligned access to the halves inside blocks. GGUF is little endian, and so is every machine this builds for. */
INLINE uint16_t get_u16(const uint8_t *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void put_u16(uint8_t *p, uint16_t v) { memcpy(p, &v, sizeof v); }

INLINE uint32_t get_u32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void put_u32(uint8_t *p, uint32_t v) { memcpy(p, &v, sizeof v); }

/* n floats to as many halves at `halves`, which may be unaligned. */
INLINE void f16s_from_f32s(const float *x, int64_t n, uint8_t *halves) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) {
        const __m256 eight = _mm256_loadu_ps(x + i);
        _mm_storeu_si128((__m128i *)(halves + 2 * i), _mm256_cvtps_ph(eight, _MM_FROUND_TO_NEAREST_INT));
        if (_mm256_movemask_ps(_mm256_cmp_ps(eight, eight, _CMP_UNORD_Q)) == 0) continue;
        for (int64_t j = i; j < i + 8; j++) put_u16(halves + 2 * j, f16_from_f32(x[j]));
    }
#endif
    for (; i < n; i++) put_u16(halves + 2 * i, f16_from_f32(x[i]));
}

/* The way back. The instruction makes every NaN quiet, so what has one in it goes the portable way. */
INLINE void f32s_from_f16s(const uint8_t *halves, int64_t n, float *x) {
    int64_t i = 0;
#if defined(__F16C__)
    enum { STRETCH = 32 };
    for (; i + STRETCH <= n; i += STRETCH) {
        __m128i largest = _mm_setzero_si128();
        for (int64_t j = i; j < i + STRETCH; j += 8) {
            const __m128i eight = _mm_loadu_si128((const __m128i *)(halves + 2 * j));
            largest = _mm_max_epi16(largest, _mm_and_si128(eight, _mm_set1_epi16(0x7fff)));
            _mm256_storeu_ps(x + j, _mm256_cvtph_ps(eight));
        }
        if (_mm_movemask_epi8(_mm_cmpgt_epi16(largest, _mm_set1_epi16(0x7c00))) == 0) continue;
        for (int64_t j = i; j < i + STRETCH; j++) x[j] = f32_from_f16_portable(get_u16(halves + 2 * j));
    }
#endif
    for (; i < n; i++) x[i] = f32_from_f16_portable(get_u16(halves + 2 * i));
}
