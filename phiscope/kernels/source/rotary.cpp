// Turns the first dims of each head by its token's angle, in place: halves are paired (NeoX style).
#include "vectors.h"

namespace {

template <class T>
void rotate_token(T* x, const float* cos, const float* sin, long heads, long dim, long half) {
    for (long h = 0; h < heads; h++, x += dim)
        for (long i = 0; i < half; i++) {
            float first = read(x + i), second = read(x + half + i);
            write(x + i, first * cos[i] - second * sin[i]);
            write(x + half + i, second * cos[i] + first * sin[i]);
        }
}

// Token t begins `t * stride` elements behind x.
template <class T>
void rotate(T* x, const float* cos, const float* sin, long tokens, long stride, long heads, long dim,
            long half, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (long t = 0; t < tokens; t++)
        rotate_token(x + t * stride, cos + t * half, sin + t * half, heads, dim, half);
}

}  // namespace

EXPORT void rotate_fp32(float* x, const float* cos, const float* sin, long tokens, long stride,
                        long heads, long dim, long half, int threads) {
    rotate(x, cos, sin, tokens, stride, heads, dim, half, threads);
}

EXPORT void rotate_bf16(uint16_t* x, const float* cos, const float* sin, long tokens, long stride,
                        long heads, long dim, long half, int threads) {
    rotate(x, cos, sin, tokens, stride, heads, dim, half, threads);
}
