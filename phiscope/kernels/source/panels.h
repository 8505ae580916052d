// How integer weights lie in memory: panels of 16 outputs, 4 inputs side by side (see quantized.py).
#pragma once

#include "vectors.h"

constexpr int OUTS = 16;              // of a panel
constexpr int PANEL = 4 * OUTS;       // bytes of a panel for 4 inputs
constexpr int PARTS = PANEL / BYTES;  // vectors they fill
