// Turns the first dims of each head by its token's angle, in place: halves are paired (NeoX style).
// Keys and values may be put into a cache in the same pass.
#include "exports.h"

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

// Keys are turned like queries, and kept with the values at the tokens' places in a cache.
template <class T>
void place(T* q, T* k, const T* v, const float* cos, const float* sin, T* keys, T* values,
           const int64_t* places, long tokens, long q_stride, long k_stride, long v_stride, long heads,
           long kv_heads, long dim, long half, int threads) {
    long row = kv_heads * dim;
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (long t = 0; t < tokens; t++) {
        rotate_token(q + t * q_stride, cos + t * half, sin + t * half, heads, dim, half);
        rotate_token(k + t * k_stride, cos + t * half, sin + t * half, kv_heads, dim, half);
        memcpy(keys + places[t] * row, k + t * k_stride, row * sizeof(T));
        memcpy(values + places[t] * row, v + t * v_stride, row * sizeof(T));
    }
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

EXPORT void place_fp32(float* q, float* k, const float* v, const float* cos, const float* sin, float* keys,
                       float* values, const int64_t* places, long tokens, long q_stride, long k_stride,
                       long v_stride, long heads, long kv_heads, long dim, long half, int threads) {
    place(q, k, v, cos, sin, keys, values, places, tokens, q_stride, k_stride, v_stride, heads, kv_heads,
          dim, half, threads);
}

EXPORT void place_bf16(uint16_t* q, uint16_t* k, const uint16_t* v, const float* cos, const float* sin,
                       uint16_t* keys, uint16_t* values, const int64_t* places, long tokens, long q_stride,
                       long k_stride, long v_stride, long heads, long kv_heads, long dim, long half,
                       int threads) {
    place(q, k, v, cos, sin, keys, values, places, tokens, q_stride, k_stride, v_stride, heads, kv_heads,
          dim, half, threads);
}
