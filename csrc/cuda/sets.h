// Parameter sets as a thread reads them. mixture.h states what a parameter set offers.
//
// The sets of a single layout stand beside its kernel: PreparedSet in common.h, KeepingRow and PreparedRow in rows.h.
#pragma once

#include "../mixture.h"
#include "../problem.h"
#include "device.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// Where a parameter set lies in memory or shared memory: the logits, loc and log_scale of its components.
template <class T>
struct ParameterRows {
  const T *logits, *loc, *log_scale;
  int64_t stride[3];

  // The set whose operands begin at `place`, an offset for each operand.
  static MIXFLOW_FN ParameterRows at(const Problem& problem, const int64_t (&place)[kOperands]) {
    return {static_cast<const T*>(problem.logits) + place[kLogits],
            static_cast<const T*>(problem.loc) + place[kLoc],
            static_cast<const T*>(problem.log_scale) + place[kLogScale],
            {problem.component_stride[0], problem.component_stride[1], problem.component_stride[2]}};
  }
  MIXFLOW_FN T logit_at(int k) const { return logits[k * stride[0]]; }
  MIXFLOW_FN T loc_at(int k) const { return loc[k * stride[1]]; }
  MIXFLOW_FN T log_scale_at(int k) const { return log_scale[k * stride[2]]; }
};

// What the components of a set have in common.
template <class T>
MIXFLOW_FN Extremes<T> extremes_of(const ParameterRows<T>& rows, int components) {
  T largest = -infinity<T>(), least_log_scale = infinity<T>(), most_log_scale = -infinity<T>();
  for (int k = 0; k < components; ++k) {
    T log_scale = rows.log_scale_at(k);
    largest = at_least(largest, rows.logit_at(k));
    least_log_scale = at_most(least_log_scale, log_scale);
    most_log_scale = at_least(most_log_scale, log_scale);
  }
  return {largest, least_log_scale, most_log_scale};
}

// A base of sets that keep nothing for a second pass over the components.
template <class T>
struct KeepsNothing {
  MIXFLOW_FN bool has_kept(int) const { return false; }
  MIXFLOW_FN Kept<T> kept(int) const { return {}; }
  MIXFLOW_FN T location(int) const { return {}; }
  MIXFLOW_FN void keep(int, const Kept<T>&) const {}
};

// The base of the sets that read ParameterRows whenever a component is used.
template <class Family, class T>
struct RowSet : Extremes<T> {
  ParameterRows<T> rows;
  int components;

  MIXFLOW_FN RowSet(const ParameterRows<T>& rows, int components)
      : Extremes<T>(extremes_of(rows, components)), rows(rows), components(components) {}

  MIXFLOW_FN T log_weight(int k) const { return rows.logit_at(k) - this->largest_logit; }
  MIXFLOW_FN Component<T> component(int k) const {
    return make_component<Family>(log_weight(k), rows.loc_at(k), rows.log_scale_at(k));
  }
};

// A set that prepares a component anew each time that it is used.
template <class Family, class T>
struct UnpreparedSet : RowSet<Family, T>, KeepsNothing<T> {
  using RowSet<Family, T>::RowSet;

  MIXFLOW_FN LogComponent<T> log_component(int k) const {
    return make_log_component(this->log_weight(k), this->rows.loc_at(k), this->rows.log_scale_at(k));
  }
  MIXFLOW_FN T total_weight() const {
    T total(0);
    for (int k = 0; k < this->components; ++k) total += quick_exp(this->log_weight(k));
    return total;
  }
};

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
