/* floats.h: float32 to float16 and bfloat16 and back, branch-free so that compilers turn loops of them into vectors. */
#include <stdint.h>
#include <string.h>

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

INLINE float f32_from_f16(uint16_t half) {
    const uint32_t magnitude = half & 0x7fff;
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t subnormal = float_bits((float)(int32_t)magnitude * 0x1p-24f);
    const uint32_t special = 0x7f800000 | magnitude << 13;
    uint32_t bits = magnitude < 0x0400 ? subnormal : normal;
    bits = magnitude >= 0x7c00 ? special : bits;
    return bits_float(bits | (uint32_t)(half & 0x8000) << 16);
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
