// SimAM and EMA for inference on the CPU, float32: the map is read once, the result written once.
//
// The unit of work is one group of channels of one image. It is copied into scratch memory as rows, one per position,
// of its channels padded with zeros to whole vectors. So both memory formats and every size share one arithmetic, whose
// inner loops run over channels.
#include <torch/library.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/CPUAllocator.h>
#include <cmath>
#include <cstring>

namespace {
using at::Tensor;

#if defined(__AVX512F__)  // floats per register: GCC keeps wider vectors in memory
constexpr int64_t LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
constexpr int64_t PAD = 16;  // the constants' rows are padded to this, so that they suit every machine
constexpr int64_t GRAIN = 32768;  // values (of SimAM) that are worth a thread
typedef float vec __attribute__((vector_size(4*LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4*LANES)));

inline float sum(vec v) {
  float s = 0;
#pragma omp simd reduction(+:s)
  for (int64_t i = 0; i < LANES; i++) s += v[i];
  return s;
}

// exp by 2^n·e^r, |r| ≤ ln2/2, and the polynomial of Cephes' expf; arguments beyond ±87 are cut, NaN stays NaN.
inline vec exp(vec x) {
  x = x < -87.f ? vec{} - 87.f : x;
  x = x > 87.f ? vec{} + 87.f : x;
  const float magic = 12582912.f;  // 1.5·2^23: adding it rounds to an integer
  vec n = (x*1.44269504f + magic) - magic;
  vec r = x - n*.693359375f + n*2.12194440e-4f;
  vec p = (((1.9875691500e-4f*r + 1.3981999507e-3f)*r + 8.3334519073e-3f)*r + 4.1665795894e-2f)*r;
  p = (p + 1.6666665459e-1f)*r + 5.0000001201e-1f;
  ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
  vec power;
  std::memcpy(&power, &bits, sizeof power);
  return (p*r*r + r + 1.f)*power;
}

inline vec sigmoid(vec x) { return 1.f/(1.f + exp(-x)); }

// Memory that each thread keeps from call to call, as `rows` vectors.
vec* scratch(int64_t rows) {
  thread_local at::DataPtr memory;
  thread_local int64_t size = 0;
  if (rows > size) { memory = c10::GetCPUAllocator()->allocate(rows*sizeof(vec)); size = rows; }
  return static_cast<vec*>(memory.get());
}

bool channels_last(const Tensor& x) { return !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast); }

Tensor dense(const Tensor& x) { return channels_last(x) ? x : x.contiguous(); }

// A result for `x`: same strides, but contiguous where `x` is neither contiguous nor channels_last. A fake tensor too
// gets it.
Tensor result(const Tensor& x) { return at::empty_like(dense(x)); }

// Where the values of one group lie, in memory and in scratch.
struct Group {
  int64_t c, H, W, position, channel;  // its size; the distance in memory of neighboring positions and of channels
  int64_t blocks, pitch;               // vectors per row; rows of scratch per row of the map

  float* row(vec* s, int64_t h, int64_t w) const { return reinterpret_cast<float*>(s + (h*pitch + w)*blocks); }

  void load(const float* x, vec* s) const {
    if (channel == 1) {
      for (int64_t h = 0; h < H; h++)
        for (int64_t w = 0; w < W; w++, x += position) std::memcpy(row(s, h, w), x, c*sizeof(float));
    } else for (int64_t i = 0; i < c; i++) for (int64_t h = 0; h < H; h++) {
      const float* from = x + i*channel + h*W;
      float* to = row(s, h, 0) + i;
      for (int64_t w = 0; w < W; w++) to[w*blocks*LANES] = from[w];
    }
  }

  template <bool ADD, bool RELU> void write(vec* s, const float* shortcut, float* y) const {
    auto finish = [&](float v, int64_t at) {
      if (ADD) v += shortcut[at];
      y[at] = RELU && v < 0 ? 0 : v;
    };
    if (channel == 1) {
      for (int64_t h = 0, at = 0; h < H; h++) for (int64_t w = 0; w < W; w++, at += position) {
        const float* from = row(s, h, w);
#pragma omp simd
        for (int64_t i = 0; i < c; i++) finish(from[i], at + i);
      }
    } else for (int64_t i = 0; i < c; i++) for (int64_t h = 0; h < H; h++) {
      const float* from = row(s, h, 0) + i;
      for (int64_t w = 0; w < W; w++) finish(from[w*blocks*LANES], i*channel + h*W + w);
    }
  }

  void store(vec* s, const float* shortcut, bool relu, float* y) const {
    if (shortcut) relu ? write<true, true>(s, shortcut, y) : write<true, false>(s, shortcut, y);
    else relu ? write<false, true>(s, shortcut, y) : write<false, false>(s, shortcut, y);
  }
};

Group group(const Tensor& x, int64_t c, int64_t blocks, int64_t pitch) {
  bool last = channels_last(x);
  return {c, x.size(2), x.size(3), last ? x.size(1) : 1, last ? 1 : x.size(2)*x.size(3), blocks, pitch};
}

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

// How much of a gate counts: x + γ·(x·s - x) = x·(γs + 1 - γ), exactly x·s where no γ is given.
struct Mix {
  float gamma, rest;

  explicit Mix(const std::optional<Tensor>& t): gamma(t ? t->item<float>() : 1.f), rest(1.f - gamma) {}

  vec operator()(vec s) const { return s*gamma + rest; }
};

// The HW rows of one vector of channels: y = x·σ((x-μ)²/(4(v+λ)) + ½), mixed with x, then y·scale + shift.
void simam_rows(vec* x, int64_t HW, float e_lambda, Mix mix, vec scale, vec shift) {
  vec mean = {}, squares = {};
  for (int64_t p = 0; p < HW; p++) mean += x[p];
  mean /= float(HW);
  for (int64_t p = 0; p < HW; p++) { vec d = x[p] - mean; squares += d*d; }
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
      g.store(s, nullptr, relu, to + at);
    }
  });
  return y;
}

// out = bias + in·w for R rows of `parts`·c values, each part padded to `blocks` vectors. The R sums stay in registers.
template <int R>
void affine(const vec* in, int64_t parts, int64_t c, int64_t blocks, const vec* w, const vec* bias, vec* out) {
  const float* value = reinterpret_cast<const float*>(in);
  for (int64_t b = 0; b < blocks; b++) {
    vec acc[R];
    for (int r = 0; r < R; r++) acc[r] = bias[b];
    for (int64_t part = 0; part < parts; part++) for (int64_t i = 0; i < c; i++) {
      const vec column = w[(part*c + i)*blocks + b];
      for (int r = 0; r < R; r++) acc[r] += value[(r*parts + part)*blocks*LANES + i]*column;
    }
    for (int r = 0; r < R; r++) out[r*blocks + b] = acc[r];
  }
}

void affine(int64_t rows, const vec* in, int64_t parts, int64_t c, int64_t blocks, const vec* w, const vec* bias,
            vec* out) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) affine<4>(in + r*parts*blocks, parts, c, blocks, w, bias, out + r*blocks);
  for (; r < rows; r++) affine<1>(in + r*parts*blocks, parts, c, blocks, w, bias, out + r*blocks);
}

// The strips (means over the width, then over the height) and the nine means that a padded 3×3 convolution takes of the
// map: total minus the row and the column that a shifted window leaves out, plus the corner that both contain.
void summaries(const Group& g, vec* x, vec* strips, vec* windows) {
  const int64_t H = g.H, W = g.W, B = g.blocks;
  vec *rows = strips, *cols = strips + H*B;
  for (int64_t b = 0; b < B; b++) {
    vec total = {};
    for (int64_t w = 0; w < W; w++) cols[w*B + b] = vec{};
    for (int64_t h = 0; h < H; h++) {
      vec sum = {};
      for (int64_t w = 0; w < W; w++) { vec v = x[(h*g.pitch + w)*B + b]; sum += v; cols[w*B + b] += v; }
      total += rows[h*B + b] = sum;
    }
    for (int u = 0; u < 3; u++) for (int v = 0; v < 3; v++) {
      const int64_t h = u ? 0 : H - 1, w = v ? 0 : W - 1;  // what the window misses
      vec s = total;
      if (u != 1) s -= rows[h*B + b];
      if (v != 1) s -= cols[w*B + b];
      if (u != 1 && v != 1) s += x[(h*g.pitch + w)*B + b];
      windows[(u*3 + v)*B + b] = s/float(H*W);
    }
    for (int64_t h = 0; h < H; h++) rows[h*B + b] /= float(W);
    for (int64_t w = 0; w < W; w++) cols[w*B + b] /= float(H);
  }
}

// Softmax of the c values in `v`, in place. The padding's weights are not counted, and not zero either.
void softmax(vec* v, int64_t c, int64_t B) {
  const float* value = reinterpret_cast<const float*>(v);
  float top = value[0], total = 0;
  for (int64_t i = 1; i < c; i++) top = std::max(top, value[i]);
  for (int64_t b = 0; b < B; b++) v[b] = exp(v[b] - top);
  for (int64_t i = 0; i < c; i++) total += value[i];
  for (int64_t b = 0; b < B; b++) v[b] /= total;
}

// The normalized branch b·x₁ as a sum over the gated channels with weights `coef`, plus a constant, which is returned.
// `soft` is b, `bias` that of the 3×3 kernel with one output; behind it stand gamma and beta, 0 in the padding.
float norm_weights(const Group& g, const vec* x, const vec* rows, const vec* cols, const vec* soft, const vec* bias,
                   float eps, vec* coef) {
  const int64_t H = g.H, W = g.W, B = g.blocks;
  const vec *gamma = bias + B, *beta = bias + 2*B;
  float constant = 0;
  for (int64_t b = 0; b < B; b++) {
    vec mean = {}, var = {};
    for (int64_t h = 0; h < H; h++) {
      vec sum = {};
      for (int64_t w = 0; w < W; w++) sum += x[(h*g.pitch + w)*B + b]*cols[w*B + b];
      mean += sum*rows[h*B + b];
    }
    mean /= float(H*W);
    for (int64_t h = 0; h < H; h++) for (int64_t w = 0; w < W; w++) {
      vec d = x[(h*g.pitch + w)*B + b]*cols[w*B + b]*rows[h*B + b] - mean;
      var += d*d;
    }
    vec deviation = var/float(H*W) + eps;
    for (int64_t i = 0; i < LANES; i++) deviation[i] = std::sqrt(deviation[i]);
    coef[b] = soft[b]*gamma[b]/deviation;
    constant += sum(soft[b]*beta[b] - coef[b]*mean + bias[b]);
  }
  return constant;
}

// Multiply the group in `x` by its gate. `frame` is x with its border of zeros, `strips` are σ(sʰ) and σ(sʷ), `mean2`
// is the mean of the 3×3 convolution and `tap` its kernel with one output; `coef` and `map` are scratch memory.
void gate(const Group& g, vec* x, const vec* frame, const vec* strips, vec* mean2, const vec* tap, const vec* bias,
          float eps, Mix mix, vec* coef, vec* map) {
  const int64_t H = g.H, W = g.W, B = g.blocks;
  const vec *rows = strips, *cols = strips + H*B;
  softmax(mean2, g.c, B);
  const float constant = norm_weights(g, x, rows, cols, mean2, bias, eps, coef);
  float* m = reinterpret_cast<float*>(map);
  vec* weight = coef + B;
  for (int64_t h = 0; h < H; h++) {
    for (int64_t b = 0; b < B; b++) weight[b] = coef[b]*rows[h*B + b];
    for (int64_t w = 0; w < W; w++) {
      vec one = {}, two = {};  // b·x₁ and a·x₂
      for (int64_t b = 0; b < B; b++) one += x[(h*g.pitch + w)*B + b]*weight[b]*cols[w*B + b];
      for (int64_t i = 0; i < 3; i++)
        for (int64_t b = 0; b < 3*B; b++) two += frame[((h + i)*g.pitch + w)*B + b]*tap[i*3*B + b];
      m[h*W + w] = sum(one + two) + constant;
    }
  }
  for (int64_t p = 0; p < H*W; p += LANES) map[p/LANES] = mix(sigmoid(map[p/LANES]));
  for (int64_t h = 0; h < H; h++) for (int64_t w = 0; w < W; w++)
    for (int64_t b = 0; b < B; b++) x[(h*g.pitch + w)*B + b] *= m[h*W + w];
}

// What `pack_ema` packs: 10c + 14 rows of B vectors.
struct Constants {
  int64_t c, B;
  const vec *w1, *w3, *tap, *b1, *b3, *rest;  // `rest`: the bias of the kernel with one output, gamma, beta

  Constants(const Tensor& t, int64_t C): c((t.size(0) - 14)/10), B(t.size(1)/LANES) {
    TORCH_CHECK(t.is_contiguous() && t.scalar_type() == at::kFloat && t.size(0) == 10*c + 14 && c > 0
                && t.size(1) == (c + PAD - 1)/PAD*PAD && C%c == 0,
                "ema_cpu: constants ", t.sizes(), " do not fit ", C, " channels");
    w1 = reinterpret_cast<const vec*>(t.const_data_ptr<float>());
    w3 = w1 + c*B;
    tap = w3 + 9*c*B;
    b1 = tap + 9*B;
    b3 = b1 + B;
    rest = b3 + B;
  }
};

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
  if (!x.numel()) return y;
  const Group g = group(x, c, B, W + 2);
  const float *from = x.const_data_ptr<float>(), *plus = add ? shortcut.const_data_ptr<float>() : nullptr;
  float* to = y.mutable_data_ptr<float>();
  // Groups go by fours, so that the matrices are read once for four of them, as far as these stay in the L2 cache.
  const int64_t frame = (H + 2)*(W + 2)*B, strips = (H + W)*B, batch = frame*4 <= 131072/LANES ? 4 : 1;
  const int64_t work = c*(20*HW + (9 + H + W)*c), grain = std::max<int64_t>(1, 8*GRAIN/work);
  at::parallel_for(0, x.size(0)*(C/c), grain, [&](int64_t begin, int64_t end) {
    vec* frames = scratch(batch*(frame + 2*strips + 10*B) + 2*B + HW/LANES + 1);
    vec *means = frames + batch*frame, *gates = means + batch*strips, *windows = gates + batch*strips;
    vec *logits = windows + batch*9*B, *coef = logits + batch*B, *map = coef + 2*B;
    std::memset(frames, 0, batch*frame*sizeof(vec));  // the borders stay zero
    for (int64_t unit = begin; unit < end; unit += batch) {
      const int64_t n = std::min(batch, end - unit);
      auto inside = [&](int64_t i) { return frames + i*frame + (g.pitch + 1)*B; };
      auto at = [&](int64_t i) { return (unit + i)/(C/c)*C*HW + (unit + i)%(C/c)*c*g.channel; };
      for (int64_t i = 0; i < n; i++) {
        g.load(from + at(i), inside(i));
        summaries(g, inside(i), means + i*strips, windows + i*9*B);
      }
      affine(n*(H + W), means, 1, c, B, k.w1, k.b1, gates);
      for (int64_t i = 0; i < n*strips; i++) gates[i] = sigmoid(gates[i]);
      affine(n, windows, 9, c, B, k.w3, k.b3, logits);
      for (int64_t i = 0; i < n; i++) {
        gate(g, inside(i), frames + i*frame, gates + i*strips, logits + i*B, k.tap, k.rest, eps, mix, coef, map);
        g.store(inside(i), plus ? plus + at(i) : nullptr, relu, to + at(i));
      }
    }
  });
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
