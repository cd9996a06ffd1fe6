// What the operators for inference (gates.cpp) and for training (training.cpp) share.
//
// The unit of work is one group of channels of one image. It is copied into scratch memory as rows, one per position,
// of its channels padded with zeros to whole vectors, in float32. So both memory formats, both dtypes and every size
// share one arithmetic, whose inner loops run over channels.
#pragma once
#include <torch/library.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/BFloat16.h>
#include <cmath>
#include <cstring>
#include <type_traits>

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

// Σ f(p) for p < n, in four sums: one alone would wait for itself.
template <class F> vec total(int64_t n, F f) {
  vec s[4] = {};
  int64_t p = 0;
  for (; p + 4 <= n; p += 4) for (int64_t i = 0; i < 4; i++) s[i] += f(p + i);
  for (; p < n; p++) s[0] += f(p);
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// Lane i of the result is the sum of v[i]: in pairs at a distance of half the vectors, then of a quarter, …
inline vec sums(const vec* v) {
#if defined(__clang__)
  vec s = {};
  for (int64_t i = 0; i < LANES; i++) s[i] = sum(v[i]);
  return s;
#else
  ivec low, high;
  for (int32_t i = 0; i < LANES; i++) { low[i] = i/2 + i%2*LANES; high[i] = low[i] + LANES/2; }
  vec s[LANES/2];
  for (int64_t i = 0; i < LANES/2; i++)
    s[i] = __builtin_shuffle(v[i], v[i + LANES/2], low) + __builtin_shuffle(v[i], v[i + LANES/2], high);
#pragma GCC unroll 4
  for (int64_t n = LANES/4; n; n /= 2) for (int64_t i = 0; i < n; i++)
    s[i] = __builtin_shuffle(s[i], s[i + n], low) + __builtin_shuffle(s[i], s[i + n], high);
  return s[0];
#endif
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

// A value in memory as a float, and back, rounded to nearest even; NaN stays NaN.
inline float widen(float v) { return v; }

inline float widen(at::BFloat16 v) {
  const uint32_t bits = uint32_t(v.x) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline void narrow(float v, float* to) { *to = v; }

inline void narrow(float v, at::BFloat16* to) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  to->x = uint16_t(v != v ? 0x7FC0 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Memory that each thread keeps from call to call, as `rows` vectors.
inline vec* scratch(int64_t rows) {
  thread_local at::DataPtr memory;
  thread_local int64_t size = 0;
  if (rows > size) { memory = c10::GetCPUAllocator()->allocate(rows*sizeof(vec)); size = rows; }
  return static_cast<vec*>(memory.get());
}

inline bool channels_last(const Tensor& x) { return !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast); }

inline Tensor dense(const Tensor& x) { return channels_last(x) ? x : x.contiguous(); }

// A result for `x`: same strides, but contiguous where `x` is neither contiguous nor channels_last. A fake tensor too
// gets it.
inline Tensor result(const Tensor& x) { return at::empty_like(dense(x)); }

using Eight = std::integral_constant<int64_t, 8>;
using Sixteen = std::integral_constant<int64_t, 16>;

// Where the values of one group lie, in memory and in scratch.
struct Group {
  int64_t c, H, W, position, channel;  // its size; the distance in memory of neighboring positions and of channels
  int64_t blocks, pitch;               // vectors per row; rows of scratch per row of the map

  float* row(vec* s, int64_t h, int64_t w) const { return reinterpret_cast<float*>(s + (h*pitch + w)*blocks); }

  // The channels of every position, which lie together; `n` is their number, known to the compiler where it is small
  template <class T, class N> void load_rows(const T* x, vec* s, N n) const {
    for (int64_t h = 0; h < H; h++) for (int64_t w = 0; w < W; w++, x += position) {
      float* to = row(s, h, w);
#pragma omp simd
      for (int64_t i = 0; i < n; i++) to[i] = widen(x[i]);
    }
  }

  template <class T> void load(const T* x, vec* s) const {
    if (channel == 1) c == 8 ? load_rows(x, s, Eight{}) : c == 16 ? load_rows(x, s, Sixteen{}) : load_rows(x, s, c);
    else for (int64_t i = 0; i < c; i++) for (int64_t h = 0; h < H; h++) {
      const T* from = x + i*channel + h*W;
      float* to = row(s, h, 0) + i;
      for (int64_t w = 0; w < W; w++) to[w*blocks*LANES] = widen(from[w]);
    }
  }

  template <bool ADD, bool RELU, class T, class N> void write_rows(vec* s, const T* shortcut, T* y, N n) const {
    for (int64_t h = 0, at = 0; h < H; h++) for (int64_t w = 0; w < W; w++, at += position) {
      const float* from = row(s, h, w);
#pragma omp simd
      for (int64_t i = 0; i < n; i++) finish<ADD, RELU>(from[i], shortcut, y, at + i);
    }
  }

  template <bool ADD, bool RELU, class T> static void finish(float v, const T* shortcut, T* y, int64_t at) {
    if (ADD) v += widen(shortcut[at]);
    narrow(RELU && v < 0 ? 0 : v, y + at);
  }

  template <bool ADD, bool RELU, class T> void write(vec* s, const T* shortcut, T* y) const {
    if (channel == 1) {
      c == 8 ? write_rows<ADD, RELU>(s, shortcut, y, Eight{}) :
      c == 16 ? write_rows<ADD, RELU>(s, shortcut, y, Sixteen{}) : write_rows<ADD, RELU>(s, shortcut, y, c);
    } else for (int64_t i = 0; i < c; i++) for (int64_t h = 0; h < H; h++) {
      const float* from = row(s, h, 0) + i;
      for (int64_t w = 0; w < W; w++) finish<ADD, RELU>(from[w*blocks*LANES], shortcut, y, i*channel + h*W + w);
    }
  }

  template <class T> void store(vec* s, const T* shortcut, bool relu, T* y) const {
    if (shortcut) relu ? write<true, true>(s, shortcut, y) : write<true, false>(s, shortcut, y);
    else relu ? write<false, true>(s, shortcut, y) : write<false, false>(s, shortcut, y);
  }
};

inline Group group(const Tensor& x, int64_t c, int64_t blocks, int64_t pitch) {
  bool last = channels_last(x);
  return {c, x.size(2), x.size(3), last ? x.size(1) : 1, last ? 1 : x.size(2)*x.size(3), blocks, pitch};
}

// How much of a gate counts: x + γ·(x·s - x) = x·(γs + 1 - γ), exactly x·s where no γ is given.
struct Mix {
  float gamma, rest;

  explicit Mix(const std::optional<Tensor>& t): gamma(t ? t->item<float>() : 1.f), rest(1.f - gamma) {}

  vec operator()(vec s) const { return s*gamma + rest; }
};

// Groups of eight channels go in pairs, as one group of sixteen, where half of every vector would be empty. Both share
// all but what is one number per group: `parts` such numbers, 1 or 2, belong to the halves of a row.
inline int64_t parts_of(int64_t c, int64_t C) { return 2*c == PAD && C%PAD == 0 ? 2 : 1; }

inline vec low(vec v, vec other) {  // its lower half, the upper of the other
  ivec lower;
  for (int32_t i = 0; i < LANES; i++) lower[i] = i < LANES/2 ? -1 : 0;
  return lower ? v : other;
}

// The numbers of the parts, `stride` apart, in the lanes of vector `b` of a row.
template <int K> vec spread(const float* m, int64_t stride, int64_t b) {
  if (K == 1) return vec{} + m[0];
  if (2*LANES <= PAD) return vec{} + m[2*b*LANES/PAD*stride];
  return low(vec{} + m[0], vec{} + m[stride]);
}

// Add what belongs to each part of vector `b` of a row to `to[part*stride]`.
template <int K> void split(vec v, int64_t b, vec* to, int64_t stride) {
  if (K == 1) to[0] += v;
  else if (2*LANES <= PAD) to[2*b*LANES/PAD*stride] += v;
  else { to[0] += low(v, vec{}); to[stride] += low(vec{}, v); }
}

template <int K> void add_sums(vec v, int64_t b, float* to) {
  vec of[K] = {};
  split<K>(v, b, of, 1);
  for (int k = 0; k < K; k++) to[k] += sum(of[k]);
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

inline void affine(int64_t rows, const vec* in, int64_t parts, int64_t c, int64_t blocks, const vec* w, const vec* bias,
            vec* out) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) affine<8>(in + r*parts*blocks, parts, c, blocks, w, bias, out + r*blocks);
  for (; r + 4 <= rows; r += 4) affine<4>(in + r*parts*blocks, parts, c, blocks, w, bias, out + r*blocks);
  for (; r < rows; r++) affine<1>(in + r*parts*blocks, parts, c, blocks, w, bias, out + r*blocks);
}

// The strips (means over the width, then over the height) and the nine means that a padded 3×3 convolution takes of the
// map: total minus the row and the column that a shifted window leaves out, plus the corner that both contain.
inline void summaries(const Group& g, vec* x, vec* strips, vec* windows) {
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

// Softmax of the c values in `v`, in place, of each part by itself. The padding's weights are not counted, and not zero.
template <int K> void softmax(vec* v, int64_t c, int64_t B) {
  const float* value = reinterpret_cast<const float*>(v);
  const int64_t n = c/K;
  float top[K], total[K] = {};
  for (int k = 0; k < K; k++) {
    top[k] = value[k*n];
    for (int64_t i = 1; i < n; i++) top[k] = std::max(top[k], value[k*n + i]);
  }
  for (int64_t b = 0; b < B; b++) v[b] = exp(v[b] - spread<K>(top, 1, b));
  for (int k = 0; k < K; k++) for (int64_t i = 0; i < n; i++) total[k] += value[k*n + i];
  for (int64_t b = 0; b < B; b++) v[b] /= spread<K>(total, 1, b);
}

// The normalized branch b·x₁ as a sum over the gated channels with weights `coef`, plus a constant per part. `soft` is
// b, `bias` that of the 3×3 kernel with one output; behind it stand gamma and beta, 0 in the padding. `stats`, if not
// null, gets mean, 1/deviation and b.
template <int K>
void norm_weights(const Group& g, const vec* x, const vec* rows, const vec* cols, const vec* soft, const vec* bias,
                  float eps, vec* coef, float* constant, vec* stats) {
  const int64_t H = g.H, W = g.W, B = g.blocks;
  const vec *gamma = bias + B, *beta = bias + 2*B;
  for (int k = 0; k < K; k++) constant[k] = 0;
  for (int64_t b = 0; b < B; b++) {
    vec mean = {}, var = {};
    for (int64_t h = 0; h < H; h++) {
      vec sum = {};
      for (int64_t w = 0; w < W; w++) sum += x[(h*g.pitch + w)*B + b]*cols[w*B + b];
      mean += sum*rows[h*B + b];
    }
    mean /= float(H*W);
    for (int64_t h = 0; h < H; h++) {
      const vec row = rows[h*B + b];
      vec sum = {};
      for (int64_t w = 0; w < W; w++) { vec d = x[(h*g.pitch + w)*B + b]*cols[w*B + b]*row - mean; sum += d*d; }
      var += sum;
    }
    vec deviation = var/float(H*W) + eps;
    for (int64_t i = 0; i < LANES; i++) deviation[i] = std::sqrt(deviation[i]);
    coef[b] = soft[b]*gamma[b]/deviation;
    if (stats) { stats[b] = mean; stats[B + b] = 1.f/deviation; stats[2*B + b] = soft[b]; }
    add_sums<K>(soft[b]*beta[b] - coef[b]*mean + bias[b], b, constant);
  }
}

// Multiply the group in `x` by its gate. `frame` is x with its border of zeros, `strips` are σ(sʰ) and σ(sʷ), `mean2`
// is the mean of the 3×3 convolution and `tap` its kernel with one output; `coef` and `map`, a map per part, are scratch
// memory. `saved` and `stats`, if not null, get the gate itself and what `norm_weights` says.
template <int K>
void gate(const Group& g, vec* x, const vec* frame, const vec* strips, vec* mean2, const vec* tap, const vec* bias,
          float eps, Mix mix, vec* coef, vec* map, float* saved, vec* stats) {
  const int64_t H = g.H, W = g.W, B = g.blocks, lines = (H*W + LANES - 1)/LANES;
  const vec *rows = strips, *cols = strips + H*B;
  float constant[K];
  softmax<K>(mean2, g.c, B);
  norm_weights<K>(g, x, rows, cols, mean2, bias, eps, coef, constant, stats);
  const float* m = reinterpret_cast<const float*>(map);
  vec *weight = coef + B, line[K*LANES] = {};
  for (int64_t h = 0; h < H; h++) {
    for (int64_t b = 0; b < B; b++) weight[b] = coef[b]*rows[h*B + b];
    for (int64_t w = 0; w < W; w++) {
      const int64_t p = h*W + w, at = p%LANES;
      vec of[K] = {};
      for (int64_t b = 0; b < B; b++) {
        vec s = x[(h*g.pitch + w)*B + b]*weight[b]*cols[w*B + b];  // b·x₁ and a·x₂
        for (int64_t i = 0; i < 3; i++) for (int64_t j = 0; j < 3; j++)
          s += frame[((h + i)*g.pitch + w + j)*B + b]*tap[(i*3 + j)*B + b];
        split<K>(s, b, of, 1);
      }
      for (int k = 0; k < K; k++) line[k*LANES + at] = of[k];
      if (at == LANES - 1 || p == H*W - 1)
        for (int k = 0; k < K; k++) map[k*lines + p/LANES] = sigmoid(sums(line + k*LANES) + constant[k]);
    }
  }
  if (saved) for (int k = 0; k < K; k++) std::memcpy(saved + k*H*W, m + k*lines*LANES, H*W*sizeof(float));
  for (int64_t i = 0; i < K*lines; i++) map[i] = mix(map[i]);
  for (int64_t h = 0; h < H; h++) for (int64_t w = 0; w < W; w++)
    for (int64_t b = 0; b < B; b++) x[(h*g.pitch + w)*B + b] *= spread<K>(m + h*W + w, lines*LANES, b);
}

// What `pack_ema` packs, 10c + 14 rows of B vectors, for groups that go in pairs: the matrices of one group twice on the
// diagonal, all other rows twice.
inline Tensor paired(const Tensor& t) {
  const int64_t c = (t.size(0) - 14)/10, P = t.size(1);
  Tensor out = at::zeros({20*c + 14, P}, t.options());
  const float* from = t.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t row = 0; row < 10*c + 14; row++) for (int64_t k = 0; k < 2; k++) {
    const int64_t there = row < 10*c ? (row/c*2 + k)*c + row%c : row + 10*c;
    std::memcpy(to + there*P + k*c, from + row*P, c*sizeof(float));
  }
  return out;
}

struct Constants {
  int64_t parts, c, B;
  Tensor t;
  const vec *w1, *w3, *tap, *b1, *b3, *rest;  // `rest`: the bias of the kernel with one output, gamma, beta

  Constants(const Tensor& packed, int64_t C) {
    c = (packed.size(0) - 14)/10;
    TORCH_CHECK(packed.is_contiguous() && packed.scalar_type() == at::kFloat && packed.size(0) == 10*c + 14 && c > 0
                && packed.size(1) == (c + PAD - 1)/PAD*PAD && C%c == 0,
                "EMA's constants ", packed.sizes(), " do not fit ", C, " channels");
    parts = parts_of(c, C);
    t = parts == 2 ? paired(packed) : packed;
    c *= parts;
    B = t.size(1)/LANES;
    w1 = reinterpret_cast<const vec*>(t.const_data_ptr<float>());
    w3 = w1 + c*B;
    tap = w3 + 9*c*B;
    b1 = tap + 9*B;
    b3 = b1 + B;
    rest = b3 + B;
  }
};

// EMA of `x`, mixed with it, then the sum with `plus`, then ReLU. `strips`, `gates` and `stats`, if not null, keep for
// every group what the backward pass needs: the strips' sigmoids, the gate, and mean, 1/deviation and b per channel.
template <int K, class T>
void ema_forward(const Tensor& x, const Constants& k, float eps, Mix mix, const T* plus, bool relu, T* to,
                 vec* kept_strips, float* kept_gate, vec* kept_stats) {
  const int64_t C = x.size(1), H = x.size(2), W = x.size(3), HW = H*W, c = k.c, B = k.B;
  const Group g = group(x, c, B, W + 2);
  const T* from = x.const_data_ptr<T>();
  // Groups go by eights, so that the matrices are read once for eight of them, as far as these stay in the L2 cache.
  const int64_t frame = (H + 2)*(W + 2)*B, strips = (H + W)*B;
  const int64_t batch = frame*8 <= 131072/LANES ? 8 : frame*4 <= 131072/LANES ? 4 : 1;
  const int64_t work = c*(20*HW + (9 + H + W)*c), grain = std::max<int64_t>(1, 8*GRAIN/work);
  at::parallel_for(0, x.size(0)*(C/c), grain, [&](int64_t begin, int64_t end) {
    vec* frames = scratch(batch*(frame + 2*strips + 10*B) + 2*B + K*(HW/LANES + 1));
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
      if (kept_strips) std::memcpy(kept_strips + unit*strips, gates, n*strips*sizeof(vec));
      affine(n, windows, 9, c, B, k.w3, k.b3, logits);
      for (int64_t i = 0; i < n; i++) {
        gate<K>(g, inside(i), frames + i*frame, gates + i*strips, logits + i*B, k.tap, k.rest, eps, mix, coef, map,
                kept_gate ? kept_gate + (unit + i)*K*HW : nullptr, kept_stats ? kept_stats + (unit + i)*3*B : nullptr);
        g.store(inside(i), plus ? plus + at(i) : nullptr, relu, to + at(i));
      }
    }
  });
}

template <class T>
void ema_forward(const Tensor& x, const Constants& k, float eps, Mix mix, const T* plus, bool relu, T* to,
                 vec* kept_strips, float* kept_gate, vec* kept_stats) {
  const auto run = k.parts == 2 ? ema_forward<2, T> : ema_forward<1, T>;
  run(x, k, eps, mix, plus, relu, to, kept_strips, kept_gate, kept_stats);
}
}  // namespace
