// Operations across the lanes of a pack or pair.
#pragma once

#include "../number.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

template <class V>
MIXFLOW_FN Scalar<V> first_lane(V x) {
  if constexpr (is_pair<V>)
    return first_lane(x.a);
  else
    return x[0];
}
// x in the first `used` lanes, and 0 in the others.
template <class V>
MIXFLOW_FN V first_lanes(V x, int used) {
  Scalar<V> values[Number<V>::lanes];
  store(values, x);
  for (int i = used; i < Number<V>::lanes; ++i) values[i] = 0;
  return load<V>(values);
}
// The sum of all lanes: one half is added to the other, again and again.
template <class V>
MIXFLOW_FN Scalar<V> sum_lanes(V x) {
  Scalar<V> values[Number<V>::lanes];
  store(values, x);
  for (int half = Number<V>::lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
