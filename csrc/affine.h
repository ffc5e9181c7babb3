// The affine map that flows put after a mixture's, and its gradients:
//
//     z = exp(a) m + b     log |dz/dx| = log |dm/dx| + a     m = G^-1(F(x)), a = log_slope, b = shift
//
// Forward it takes what the mixture gives, in the inverse it comes first. Gradients are those of the op as a whole,
// from m at x in either direction.
#pragma once

#include "gradients.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

template <class V>
struct AffineMap {
  V shift, log_slope;

  MIXFLOW_FN Mapped<V> forward(const Mapped<V>& mixture) const {
    return {fma(exp(log_slope), mixture.value, shift), mixture.ladj + log_slope};
  }
  // From z to what the mixture's inverse starts at.
  MIXFLOW_FN V inverse(V z) const { return (z - shift) * exp(-log_slope); }
};

// Gradients by the input of the whole op and by the two parameters.
template <class V>
struct AffineGradients {
  V input, shift, log_slope;
};

// Forward: the mixture's own gradients come from seeds g_m = g_z exp(a) and g_ladj, and its input is that of the whole.
template <class V>
MIXFLOW_FN AffineGradients<V> affine_gradients(V m, V g_z, V g_ladj, V g_m, V g_x) {
  return {g_x, g_z, fma(g_m, m, g_ladj)};
}
// The inverse: x(w) with w = (z - b) exp(-a), ladj' = log |dx/dw| - a; g_w is the gradient by w.
template <class V>
MIXFLOW_FN AffineGradients<V> affine_inverse_gradients(V m, V log_slope, V g_ladj, V g_w) {
  V g_z = g_w * exp(-log_slope);
  return {g_z, -g_z, -fma(g_w, m, g_ladj)};
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
