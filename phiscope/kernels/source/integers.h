// Products of small integers: four neighbouring bytes of each lane, and the lower halves of lanes.
#pragma once

#include "vectors.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)
typedef __m512i machine_ints;
#define MADD_SHORTS(a, b) _mm512_madd_epi16(a, b)
#elif defined(__AVX2__) && !defined(__AVX512F__)
typedef __m256i machine_ints;
#define MADD_SHORTS(a, b) _mm256_madd_epi16(a, b)
#endif

// total + the sum of a's even 16-bit element times b's, and of the odd ones, of each lane.
INLINE ints add_short_products(ints total, ints a, ints b) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpwssd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
#elif defined(MADD_SHORTS)
    return total + (ints)MADD_SHORTS((machine_ints)a, (machine_ints)b);
#else
    return total + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// total + the sum of four unsigned bytes of each lane of u times the signed ones of s.
INLINE ints add_byte_products(ints total, ints u, ints s) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)u, (__m512i)s);
#else
    shorts even = (shorts)s << 8 >> 8, odd = (shorts)s >> 8;
    ints u_even = u & spread(0x00FF00FF), u_odd = (ints)((ushorts)u >> 8);
    return add_short_products(add_short_products(total, u_even, (ints)even), u_odd, (ints)odd);
#endif
}

INLINE ints spread_bytes(const int8_t* four) {
    int32_t word;
    memcpy(&word, four, 4);
    return spread(word);
}
