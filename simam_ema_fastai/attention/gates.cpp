// SimAM and EMA for inference on the CPU, float32: the map is read once, the result written once.
#include "gates.h"

namespace {
void check(const Tensor& x, const char* op) {
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kFloat,
              op, " takes a float32 map (N, C, H, W), not ", x.scalar_type(), " ", x.sizes());
}

// C float32 values, or undefined where none are given.
Tensor per_channel(const std::optional<Tensor>& t, int64_t C) {
  if (!t) return {};
  TORCH_CHECK(t->numel() == C && t->scalar_type() == at::kFloat,
              "simam_cpu takes ", C, " float32 scales and shifts, not ", t->sizes());
  return t->contiguous();
}

// `c` values of `t` from `first` on, or `other` where `t` is undefined.
vec load(const Tensor& t, int64_t first, int64_t c, float other) {
  vec v = vec{} + other;
  if (t.defined()) std::memcpy(&v, t.const_data_ptr<float>() + first, c*sizeof(float));
  return v;
}

// The HW rows of one vector of channels: y = x·σ((x-μ)²/(4(v+λ)) + ½), mixed with x, then y·scale + shift.
void simam_rows(vec* x, int64_t HW, float e_lambda, Mix mix, vec scale, vec shift) {
  const vec mean = total(HW, [&](int64_t p) { return x[p]; })/float(HW);
  const vec squares = total(HW, [&](int64_t p) { vec d = x[p] - mean; return d*d; });
  const vec k = .25f/(squares/float(std::max<int64_t>(HW - 1, 1)) + e_lambda);
  for (int64_t p = 0; p < HW; p++) { vec d = x[p] - mean; x[p] = x[p]*mix(sigmoid(d*d*k + .5f))*scale + shift; }
}

// SimAM, mixed with the input, then scale and shift per channel, then ReLU
Tensor simam(const Tensor& input, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
             const std::optional<Tensor>& gamma, double e_lambda, bool relu) {
  check(input, "simam_cpu");
  const Mix mix(gamma);
  Tensor x = dense(input), y = at::empty_like(x);
  const int64_t C = x.size(1), HW = x.size(2)*x.size(3), units = (C + LANES - 1)/LANES;
  const Tensor scales = per_channel(scale, C), shifts = per_channel(shift, C);
  if (!x.numel()) return y;
  const float *from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, GRAIN/(HW*LANES));
  at::parallel_for(0, x.size(0)*units, grain, [&](int64_t begin, int64_t end) {
    vec* s = scratch(HW);
    std::memset(s, 0, HW*sizeof(vec));
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t first = unit%units*LANES;
      const Group g = group(x, std::min(LANES, C - first), 1, x.size(3));
      const int64_t at = unit/units*C*HW + first*g.channel;
      g.load(from + at, s);
      simam_rows(s, HW, float(e_lambda), mix, load(scales, first, g.c, 1.f), load(shifts, first, g.c, 0.f));
      g.store(s, static_cast<const float*>(nullptr), relu, to + at);
    }
  });
  return y;
}

// EMA, mixed with the input, then the sum with `add`, then ReLU
Tensor ema(const Tensor& input, const Tensor& constants, const std::optional<Tensor>& gamma, double eps,
           const std::optional<Tensor>& add, bool relu) {
  check(input, "ema_cpu");
  const Mix mix(gamma);
  Tensor x = dense(input), y = at::empty_like(x), shortcut;
  const int64_t C = x.size(1), H = x.size(2), W = x.size(3), HW = H*W;
  const Constants k(constants, C);
  const int64_t c = k.c, B = k.B;
  if (add) {
    TORCH_CHECK(add->sizes() == x.sizes() && add->scalar_type() == at::kFloat,
                "ema_cpu: a shortcut ", add->sizes(), " does not fit ", x.sizes());
    shortcut = add->contiguous(channels_last(x) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  }
  if (x.numel()) {
    const float* plus = add ? shortcut.const_data_ptr<float>() : nullptr;
    ema_forward<float>(x, k, eps, mix, plus, relu, y.mutable_data_ptr<float>(), nullptr, nullptr, nullptr);
  }
  return y;
}
}  // namespace

TORCH_LIBRARY(simam_ema, m) {
  // flexible_layout: Inductor need not copy to the format it saw first
  const std::vector<at::Tag> tags = {at::Tag::flexible_layout, at::Tag::pt2_compliant_tag};
  m.def("simam_cpu(Tensor x, Tensor? scale, Tensor? shift, Tensor? mix, float e_lambda, bool relu) -> Tensor", tags);
  m.def("ema_cpu(Tensor x, Tensor constants, Tensor? mix, float eps, Tensor? shortcut, bool relu) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(simam_ema, CPU, m) {
  m.impl("simam_cpu", simam);
  m.impl("ema_cpu", ema);
}

TORCH_LIBRARY_IMPL(simam_ema, Meta, m) {
  using Optional = const std::optional<Tensor>&;
  m.impl("simam_cpu", [](const Tensor& x, Optional, Optional, Optional, double, bool) { return result(x); });
  m.impl("ema_cpu", [](const Tensor& x, const Tensor&, Optional, double, Optional, bool) { return result(x); });
}
