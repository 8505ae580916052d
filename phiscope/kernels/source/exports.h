// The kernels that a whole block is made of, as others see them.
#pragma once

#include "vectors.h"

#define DECLARE(SUFFIX, T)                                                                              \
    EXPORT void place_##SUFFIX(T* q, T* k, const T* v, const float* cos, const float* sin, T* keys,      \
                               T* values, const int64_t* places, long tokens, long q_stride,            \
                               long k_stride, long v_stride, long heads, long kv_heads, long dim,        \
                               long half, int threads);                                                 \
    EXPORT void attend_##SUFFIX(const T* q, const T* keys, const T* values, T* out,                      \
                                const void* sequences, long count, long stride, long heads,              \
                                long kv_heads, long dim, int threads);                                  \
    EXPORT void gelu_##SUFFIX(T* x, long count, int threads);

DECLARE(fp32, float)
DECLARE(bf16, uint16_t)
#undef DECLARE

EXPORT void norm_fp32(const float* x, const float* weight, const float* bias, float* y, long rows, long width,
                      float eps, int threads);
EXPORT void norm_bf16_fp32(const float* x, const uint16_t* weight, const uint16_t* bias, float* y, long rows,
                           long width, float eps, int threads);
EXPORT void norm_fp16_fp32(const float* x, const Half* weight, const Half* bias, float* y, long rows, long width,
                           float eps, int threads);
EXPORT void norm_bf16(const uint16_t* x, const uint16_t* weight, const uint16_t* bias, uint16_t* y, long rows,
                      long width, float eps, int threads);

EXPORT void linear_fp32(const float* x, const float* w, const float* bias, float* y, long rows, long width,
                        long outs, int threads);
EXPORT void linear_bf16_fp32(const float* x, const uint16_t* w, const uint16_t* bias, float* y, long rows,
                             long width, long outs, int threads);
EXPORT void linear_fp16_fp32(const float* x, const Half* w, const Half* bias, float* y, long rows, long width,
                             long outs, int threads);
EXPORT void linear_bf16(const uint16_t* x, const uint16_t* w, const uint16_t* bias, uint16_t* y, long rows,
                        long width, long outs, int threads);
EXPORT void linear_int8(const float* x, const uint8_t* w, const float* scales, const float* bias, float* y,
                        long rows, long x_width, long width, long outs, int threads);
EXPORT void linear_int8_wide(const float* x, const uint8_t* w, const float* scales, const float* bias,
                             float* y, long rows, long x_width, long width, long outs, int threads);
EXPORT void linear_int4(const float* x, const uint8_t* w, const uint8_t* multipliers, const float* scales,
                        const float* bias, float* y, long rows, long x_width, long width, long outs,
                        int threads);
