// Pairs: two packs, or two pairs, side by side. Every operation is done on both.
//
// A chain of dependent instructions leaves the arithmetic units of a processor idle most of the time, since each one
// waits for the result of the one before. The processor looks only a limited number of instructions ahead for others
// that it can start. A pair puts independent instructions next to each other.
#pragma once

#include "pack.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

template <class V>
struct Pair {
  V a, b;

  // Written out: the constructor that the compiler would make clears the pair in memory.
  MIXFLOW_FN Pair() : a{}, b{} {}
  MIXFLOW_FN Pair(V a, V b) : a(a), b(b) {}
};
template <class V>
struct Number<Pair<V>> {
  using Scalar = typename Number<V>::Scalar;
  using Bits = Pair<typename Number<V>::Bits>;
  using SignedBits = Pair<typename Number<V>::SignedBits>;
  using Mask = Pair<typename Number<V>::Mask>;
  static constexpr int lanes = 2 * Number<V>::lanes;
};
template <class V>
constexpr bool is_pair<Pair<V>> = true;
template <class V>
constexpr bool exceeds_registers<Pair<Pair<V>>> = Features::registers < 32;

// V paired `times` times, which makes 2^times of V.
template <class V, int times>
struct WideOf : WideOf<Pair<V>, times - 1> {};
template <class V>
struct WideOf<V, 0> {
  using type = V;
};

// The type of one number of a pack or pair, of numbers, bits or masks.
template <class V>
struct ElementOf {
  using type = decltype(+V()[0]);
};
template <class V>
struct ElementOf<Pair<V>> : ElementOf<V> {};
template <class V>
using Element = typename ElementOf<V>::type;

#define MIXFLOW_BINARY(OPERATOR)                                                 \
  template <class V>                                                             \
  MIXFLOW_FN auto operator OPERATOR(const Pair<V>& x, const Pair<V>& y) {        \
    return Pair<decltype(x.a OPERATOR y.a)>{x.a OPERATOR y.a, x.b OPERATOR y.b}; \
  }                                                                              \
  template <class V>                                                             \
  MIXFLOW_FN auto operator OPERATOR(const Pair<V>& x, Element<V> y) {            \
    return Pair<decltype(x.a OPERATOR y)>{x.a OPERATOR y, x.b OPERATOR y};       \
  }                                                                              \
  template <class V>                                                             \
  MIXFLOW_FN auto operator OPERATOR(Element<V> x, const Pair<V>& y) {            \
    return Pair<decltype(x OPERATOR y.a)>{x OPERATOR y.a, x OPERATOR y.b};       \
  }
MIXFLOW_BINARY(+)
MIXFLOW_BINARY(-)
MIXFLOW_BINARY(*)
MIXFLOW_BINARY(/)
MIXFLOW_BINARY(&)
MIXFLOW_BINARY(|)
MIXFLOW_BINARY(^)
MIXFLOW_BINARY(<<)
MIXFLOW_BINARY(>>)
MIXFLOW_BINARY(<)
MIXFLOW_BINARY(<=)
MIXFLOW_BINARY(>)
MIXFLOW_BINARY(>=)
MIXFLOW_BINARY(==)
MIXFLOW_BINARY(!=)
#undef MIXFLOW_BINARY
template <class V>
MIXFLOW_FN Pair<V> operator-(const Pair<V>& x) {
  return {-x.a, -x.b};
}
template <class V>
MIXFLOW_FN Pair<V> operator~(const Pair<V>& x) {
  return {~x.a, ~x.b};
}
template <class V>
MIXFLOW_FN Pair<V>& operator+=(Pair<V>& x, const Pair<V>& y) {
  return x = x + y;
}

#define MIXFLOW_UNARY(PRIMITIVE)                   \
  template <class V>                               \
  MIXFLOW_FN Pair<V> PRIMITIVE(const Pair<V>& x) { \
    return {PRIMITIVE(x.a), PRIMITIVE(x.b)};       \
  }
MIXFLOW_UNARY(sqrt)
MIXFLOW_UNARY(bounded_reciprocal)
MIXFLOW_UNARY(reciprocal_estimate)
MIXFLOW_UNARY(reciprocal_sqrt)
#undef MIXFLOW_UNARY
template <class V>
MIXFLOW_FN Pair<V> max(Pair<V> x, Pair<V> y) {
  return {max(x.a, y.a), max(x.b, y.b)};
}
template <class V>
MIXFLOW_FN Pair<V> min(Pair<V> x, Pair<V> y) {
  return {min(x.a, y.a), min(x.b, y.b)};
}
template <class V>
MIXFLOW_FN Pair<V> fma(const Pair<V>& x, const Pair<V>& y, const Pair<V>& z) {
  return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)};
}
template <class V>
MIXFLOW_FN Pair<V> scalef(const Pair<V>& x, const Pair<V>& n) {
  return {scalef(x.a, n.a), scalef(x.b, n.b)};
}
template <class B>
MIXFLOW_FN auto lookup(const float (&table)[16], const Pair<B>& index) {
  auto a = lookup(table, index.a);
  return Pair<decltype(a)>{a, lookup(table, index.b)};
}
template <class M>
MIXFLOW_FN bool any(const Pair<M>& m) {
  return any(m.a | m.b);
}
template <class M>
MIXFLOW_FN bool all(const Pair<M>& m) {
  return all(m.a & m.b);
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
