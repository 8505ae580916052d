// Which compiler built the kernels.
#include "vectors.h"

EXPORT const char* name_compiler() { return __VERSION__; }
