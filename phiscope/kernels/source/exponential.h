// exp(x) to about 1e-7 relative: 2^n times a polynomial on half an octave to either side of 0.
#pragma once

#include "vectors.h"

INLINE floats exp_of(floats x) {
    constexpr float series[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f};
    x = x < -87.0f ? spread(-87.0f) : x;
    x = x > 88.0f ? spread(88.0f) : x;
    floats shifted = x * 1.44269504f + 12582912.0f;  // leaves the nearest whole number, in its bits
    floats n = shifted - 12582912.0f;
    floats rest = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats y = spread(1.0f / 720);
    for (float c : series) y = y * rest + c;
    ints power = ((ints)shifted << 23) + (127 << 23);
    return y * (floats)power;
}
