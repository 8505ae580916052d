// Whether all numbers of a piece of memory are finite: none has all bits of its exponent set.
#include "vectors.h"

namespace {

template <class V, class T>
bool all_finite(const T* x, long count, T exponent) {
    constexpr long WIDTH = BYTES / sizeof(T);
    V found{}, mask = V{} + exponent;
    long i = 0;
    for (; i + WIDTH <= count; i += WIDTH) found |= (V)((load<V>(x + i) & mask) == mask);
    T rest = 0;
    for (; i < count; i++) rest |= (x[i] & exponent) == exponent;
    for (int lane = 0; lane < WIDTH; lane++) rest |= found[lane];
    return rest == 0;
}

}  // namespace

EXPORT int is_finite_16(const void* x, long count, int exponent) {
    return all_finite<ushorts>((const uint16_t*)x, count, uint16_t(exponent));
}

EXPORT int is_finite_32(const void* x, long count, int exponent) {
    return all_finite<ints>((const int32_t*)x, count, int32_t(exponent));
}
