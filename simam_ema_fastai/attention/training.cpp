// SimAM and EMA for training on the CPU, float32 and bfloat16: forward and backward, in either memory format.
// `triton_ema_backward` derives the gradients, under the same names.
//
// The forward pass keeps x and little beside it, and the backward pass computes the rest anew, a group at a time in
// scratch memory. The parameters' gradients are summed per thread, then over the threads: always in the same order.
#include "gates.h"
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <tuple>

namespace {
using Optional = const std::optional<Tensor>&;

#define DISPATCH(X, NAME, ...) \
  AT_DISPATCH_SWITCH((X).scalar_type(), NAME, AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__) \
                                              AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

void check_map(const Tensor& x, const char* op) {
  TORCH_CHECK(x.dim() == 4, op, " takes a map (N, C, H, W), not ", x.sizes());
}

// `g` in the memory format of `x`, whose shape and dtype it has.
Tensor like(const Tensor& x, const Tensor& g) {
  TORCH_CHECK(g.sizes() == x.sizes(), "a gradient ", g.sizes(), " does not fit ", x.sizes());
  return g.to(x.scalar_type()).contiguous(channels_last(x) ? at::MemoryFormat::ChannelsLast
                                                           : at::MemoryFormat::Contiguous);
}

Tensor floats(at::IntArrayRef sizes, const Tensor& like) { return at::empty(sizes, like.options().dtype(at::kFloat)); }

vec* vectors(const Tensor& t) { return reinterpret_cast<vec*>(t.mutable_data_ptr<float>()); }

// γ's gradient from what the units have left of it
Tensor mix_grad(Optional mix, const Tensor& x, const Tensor& parts) {
  if (!mix) return at::empty({0}, x.options());
  return parts.sum().to(mix->scalar_type()).view_as(*mix);
}

// ---------------------------------------------------------------------------------------------------------------- SimAM

// What SimAM works on at a time: LANES neighboring channels, a row per position; or, where the positions of a channel
// lie together and fill a vector, one channel, LANES positions a row.
template <bool PLANAR> struct Unit {
  Group g;
  int64_t units, HW, rows;
  ivec inside;  // which lanes of the last row exist

  explicit Unit(const Tensor& x): g(group(x, 0, 1, x.size(3))), HW(x.size(2)*x.size(3)) {
    units = PLANAR ? x.size(1) : (x.size(1) + LANES - 1)/LANES;
    rows = PLANAR ? (HW + LANES - 1)/LANES : HW;
    for (int64_t i = 0; i < LANES; i++) inside[i] = PLANAR && (rows - 1)*LANES + i >= HW ? 0 : -1;
  }

  // The first value of a unit; `g` gets its number of channels.
  int64_t at(int64_t unit, int64_t C) {
    const int64_t first = PLANAR ? unit%units : unit%units*LANES;
    g.c = PLANAR ? 1 : std::min(LANES, C - first);
    return unit/units*C*HW + first*g.channel;
  }

  template <class T> void load(const T* from, vec* s) const {
    if (!PLANAR) return g.load(from, s);
    float* to = reinterpret_cast<float*>(s);
#pragma omp simd
    for (int64_t i = 0; i < HW; i++) to[i] = widen(from[i]);
  }

  template <class T> void store(vec* s, T* to) const {
    if (!PLANAR) return g.store(s, static_cast<const T*>(nullptr), false, to);
    const float* from = reinterpret_cast<const float*>(s);
#pragma omp simd
    for (int64_t i = 0; i < HW; i++) narrow(from[i], to + i);
  }

  static vec whole(vec v) { return PLANAR ? vec{} + sum(v) : v; }

  // x - μ, 0 beyond the map
  vec deviation(vec x, vec mean, int64_t p) const {
    vec d = x - mean;
    return PLANAR && p == rows - 1 ? (inside ? d : vec{}) : d;
  }

  // μ, then k = 1/(4(v + λ))
  vec mean(const vec* x) const { return whole(total(rows, [&](int64_t p) { return x[p]; }))/float(HW); }

  vec k(const vec* x, vec mean, float e_lambda) const {
    const vec s = total(rows, [&](int64_t p) { vec d = deviation(x[p], mean, p); return d*d; });
    return .25f/(whole(s)/float(std::max<int64_t>(HW - 1, 1)) + e_lambda);
  }
};

// f(unit, scratch memory of `arrays` maps) for all units of x, in threads
template <bool PLANAR, class F> void each_unit(const Tensor& x, int64_t arrays, F f) {
  const Unit<PLANAR> all(x);
  const int64_t grain = std::max<int64_t>(1, GRAIN/4/(all.rows*LANES));
  at::parallel_for(0, x.size(0)*all.units, grain, [&](int64_t begin, int64_t end) {
    Unit<PLANAR> u = all;
    vec* s = scratch(arrays*u.rows);
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t at = u.at(unit, x.size(1));
      if (unit == begin || (!PLANAR && u.g.c < LANES)) std::memset(s, 0, arrays*u.rows*sizeof(vec));  // what no channel fills
      f(u, unit, at, s);
    }
  });
}

template <bool PLANAR, class T> void simam_forward(const Tensor& x, float e_lambda, Mix mix, const Tensor& y) {
  const T* from = x.const_data_ptr<T>();
  T* to = y.mutable_data_ptr<T>();
  each_unit<PLANAR>(x, 1, [&](Unit<PLANAR>& u, int64_t, int64_t at, vec* v) {
    u.load(from + at, v);
    const vec mean = u.mean(v), k = u.k(v, mean, e_lambda);
    for (int64_t p = 0; p < u.rows; p++) { vec d = v[p] - mean; v[p] *= mix(sigmoid(d*d*k + .5f)); }
    u.store(v, to + at);
  });
}

template <bool PLANAR, class T>
Tensor simam_backward(const Tensor& x, const Tensor& g, float e_lambda, Mix mix, const Tensor& dx) {
  const T *from = x.const_data_ptr<T>(), *grad = g.const_data_ptr<T>();
  T* to = dx.mutable_data_ptr<T>();
  Tensor parts = at::zeros({x.size(0)*Unit<PLANAR>(x).units}, x.options().dtype(at::kFloat));
  float* part = parts.mutable_data_ptr<float>();
  each_unit<PLANAR>(x, 3, [&](Unit<PLANAR>& u, int64_t unit, int64_t at, vec* v) {
    vec *out = v + u.rows, *through = out + u.rows;
    u.load(from + at, v);
    u.load(grad + at, out);
    const vec mean = u.mean(v), k = u.k(v, mean, e_lambda);
    vec A = {}, B = {}, M = {};
    for (int64_t p = 0; p < u.rows; p++) {
      const vec d = u.deviation(v[p], mean, p), s = sigmoid(d*d*k + .5f), ds = out[p]*v[p], qd = ds*s*(1.f - s)*d;
      A += qd;
      B += qd*d;
      M += ds*(s - 1.f);
      out[p] *= mix(s);
      through[p] = qd;
    }
    A = u.whole(A)/float(u.HW);
    B = u.whole(B)*(4.f*k/float(std::max<int64_t>(u.HW - 1, 1)));
    const vec k2 = 2.f*mix.gamma*k;
    for (int64_t p = 0; p < u.rows; p++) {
      vec d = v[p] - mean;
      out[p] += k2*(through[p] - A - d*B);
    }
    part[unit] = sum(M);
    u.store(out, to + at);
  });
  return parts;
}

bool planar(const Tensor& x) { return !channels_last(x) && x.size(2)*x.size(3) >= LANES; }

Tensor simam(const Tensor& input, Optional mix, double e_lambda) {
  check_map(input, "simam_train");
  Tensor x = dense(input), y = at::empty_like(x);
  if (x.numel()) DISPATCH(x, "simam_train", [&] {
    planar(x) ? simam_forward<true, scalar_t>(x, e_lambda, Mix(mix), y)
              : simam_forward<false, scalar_t>(x, e_lambda, Mix(mix), y);
  });
  return y;
}

std::tuple<Tensor, Tensor> simam_grads(const Tensor& input, const Tensor& grad, Optional mix, double e_lambda) {
  Tensor x = dense(input), dx = at::empty_like(x), g = like(x, grad), parts = floats({0}, x);
  if (x.numel()) DISPATCH(x, "simam_train", [&] {
    parts = planar(x) ? simam_backward<true, scalar_t>(x, g, e_lambda, Mix(mix), dx)
                      : simam_backward<false, scalar_t>(x, g, e_lambda, Mix(mix), dx);
  });
  return {dx, mix_grad(mix, x, parts)};
}

// ------------------------------------------------------------------------------------------------------------------ EMA

// EMA's parameters as `pack_ema` packs them
Tensor pack(const Tensor& w1_, const Tensor& b1_, const Tensor& w3_, const Tensor& b3_, const Tensor& gamma_,
            const Tensor& beta_) {
  auto plain = [](const Tensor& t) { return t.to(at::kFloat).contiguous(); };
  const Tensor w1 = plain(w1_), b1 = plain(b1_), w3 = plain(w3_), b3 = plain(b3_), gamma = plain(gamma_),
               beta = plain(beta_);
  const int64_t c = beta.numel(), P = (c + PAD - 1)/PAD*PAD;
  TORCH_CHECK(w1.numel() == c*c && w3.numel() == 9*c*c && b1.numel() == c && b3.numel() == c && gamma.numel() == c,
              "EMA's parameters do not fit each other");
  Tensor t = at::zeros({10*c + 14, P}, w1.options());
  float *to = t.mutable_data_ptr<float>(), *taps = to + 10*c*P, *rest = taps + 9*P;
  const float *m1 = w1.const_data_ptr<float>(), *m3 = w3.const_data_ptr<float>();
  const Tensor soft = beta.softmax(0);
  const float* a = soft.const_data_ptr<float>();
  for (int64_t o = 0; o < c; o++) for (int64_t i = 0; i < c; i++) {
    to[i*P + o] = m1[o*c + i];
    for (int64_t j = 0; j < 9; j++) {
      const float v = m3[(o*c + i)*9 + j];
      to[(c + j*c + i)*P + o] = v;
      taps[j*P + i] += a[o]*v;
    }
  }
  for (int64_t o = 0; o < c; o++) {
    rest[o] = b1.const_data_ptr<float>()[o];
    rest[P + o] = b3.const_data_ptr<float>()[o];
    rest[2*P] += a[o]*rest[P + o];
    rest[3*P + o] = gamma.const_data_ptr<float>()[o];
    rest[4*P + o] = beta.const_data_ptr<float>()[o];
  }
  return t;
}

struct Shape {
  int64_t groups, c, P, H, W;

  Shape(const Tensor& x, const Tensor& beta): c(beta.numel()), P((c + PAD - 1)/PAD*PAD), H(x.size(2)), W(x.size(3)) {
    TORCH_CHECK(x.dim() == 4 && x.size(1)%c == 0, "EMA in groups of ", c, " channels does not fit ", x.sizes());
    groups = x.size(0)*(x.size(1)/c);
  }
};

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The output; with `save` also what the backward pass needs: the packed parameters, and of every group the strips'
// sigmoids, the gate, and mean, 1/deviation and b of every channel.
Five ema(const Tensor& input, const Tensor& w1, const Tensor& b1, const Tensor& w3, const Tensor& b3,
         const Tensor& gamma, const Tensor& beta, Optional mix, double eps, bool save) {
  check_map(input, "ema_train");
  const Shape s(input, beta);
  const int64_t groups = save ? s.groups : 0;
  Tensor x = dense(input), y = at::empty_like(x), packed = pack(w1, b1, w3, b3, gamma, beta);
  Tensor strips = floats({groups, s.H + s.W, s.P}, x), gates = floats({groups, s.H, s.W}, x),
         stats = floats({groups, 3, s.P}, x);
  if (x.numel()) DISPATCH(x, "ema_train", [&] {
    ema_forward<scalar_t>(x, Constants(packed, x.size(1)), eps, Mix(mix), nullptr, false,
                          y.mutable_data_ptr<scalar_t>(), save ? vectors(strips) : nullptr,
                          save ? gates.mutable_data_ptr<float>() : nullptr, save ? vectors(stats) : nullptr);
  });
  return {y, packed, strips, gates, stats};
}

// acc[i] += Σ_r in[r][i]·d[r], for `rows` rows of `parts`·c values and of c values: the gradient of `affine`'s matrix.
template <int R>
void outer(int64_t rows, const float* value, int64_t pitch, int64_t count, const vec* d, int64_t blocks, vec* acc) {
  for (int64_t b = 0; b < blocks; b++) {
    vec s[R];
    for (int i = 0; i < R; i++) s[i] = i < count ? acc[i*blocks + b] : vec{};
    for (int64_t r = 0; r < rows; r++) {
      const vec v = d[r*blocks + b];
      for (int i = 0; i < R; i++) s[i] += value[r*pitch + i]*v;  // of the padding too, which is not kept
    }
    for (int i = 0; i < R; i++) if (i < count) acc[i*blocks + b] = s[i];
  }
}

void outer(int64_t rows, const vec* in, int64_t parts, int64_t c, const vec* d, int64_t blocks, vec* acc) {
  const float* value = reinterpret_cast<const float*>(in);
  const int64_t width = blocks*LANES, pitch = parts*width;
  for (int64_t part = 0; part < parts; part++) for (int64_t i = 0; i < c; i += 8) {
    const float* from = value + part*width + i;
    vec* to = acc + (part*c + i)*blocks;
    if (i + 8 <= c) outer<8>(rows, from, pitch, 8, d, blocks, to);
    else for (int64_t k = i; k < c; k++)
      outer<1>(rows, value + part*width + k, pitch, 1, d, blocks, acc + (part*c + k)*blocks);
  }
}

// The matrices of `affine` transposed: of the strips, then of the nine taps
Tensor transposed(const Constants& k) {
  const int64_t c = k.c, P = k.t.size(1);
  Tensor t = at::zeros({10*c, P}, k.t.options());
  const float* from = k.t.const_data_ptr<float>();
  float* to = t.mutable_data_ptr<float>();
  for (int64_t m = 0; m < 10; m++) for (int64_t i = 0; i < c; i++) for (int64_t o = 0; o < c; o++)
    to[(m*c + o)*P + i] = from[(m*c + i)*P + o];
  return t;
}

// What one thread leaves of the parameters' gradients, in the order of `Constants`
struct Grads {
  vec *w1, *w3, *tap, *b1, *b3, *gamma, *beta;

  Grads(vec* t, int64_t c, int64_t B): w1(t), w3(w1 + c*B), tap(w3 + 9*c*B), b1(tap + 9*B), b3(b1 + B),
                                       gamma(b3 + 2*B), beta(gamma + B) {}
};

// A group of the backward pass, or a pair of groups. `frame` and `lines` are the sizes of a part's map in a frame of
// zeros and without one.
template <int K> struct Backward {
  const Group g;
  const Constants& k;
  const Mix mix;
  int64_t H, W, HW, B, frame, lines;

  // The gradient of the map in a frame of zeros, `q`, and its sum, of every part; `weight` gets the gate mixed, `left`
  // γ's gradient.
  void map_grad(const vec* x, const vec* grad, const float* gate, float* ds, float* weight, float* q, float* Q,
                float* left) const {
    vec line[K*LANES] = {};
    for (int64_t p = 0; p < HW; p++) {
      const int64_t at = p%LANES;
      vec of[K] = {};
      for (int64_t b = 0; b < B; b++) split<K>(x[p*B + b]*grad[p*B + b], b, of, 1);
      for (int part = 0; part < K; part++) line[part*LANES + at] = of[part];
      if (at == LANES - 1 || p == HW - 1) for (int part = 0; part < K; part++)
        reinterpret_cast<vec*>(ds + part*lines)[p/LANES] = sums(line + part*LANES);
    }
    for (int part = 0; part < K; part++, gate += HW, ds += lines, weight += lines, q += frame) {
      float total = 0, rest = 0;
#pragma omp simd reduction(+:total, rest)
      for (int64_t p = 0; p < HW; p++) {
        const float s = gate[p];
        rest += ds[p]*(s - 1);
        weight[p] = mix.gamma*s + mix.rest;
        total += ds[p] *= mix.gamma*s*(1 - s);
      }
      for (int64_t h = 0; h < H; h++) std::memcpy(q + (h + 1)*(W + 2) + 1, ds + h*W, W*sizeof(float));
      Q[part] = total;
      left[part] = rest;
    }
  }

  // ∂u of the logits, and T
  void softmax_grad(const vec* x, const vec* rows, const vec* cols, const float* ds, const float* Q, const vec* stats,
                    vec* T, vec* du, const Grads& d) const {
    const vec *mean = stats, *rstd = stats + B, *soft = stats + 2*B, *gamma = k.rest + B, *beta = k.rest + 2*B;
    float dot[K] = {};
    for (int64_t b = 0; b < B; b++) {
      const vec sum = spread<K>(Q, 1, b);
      vec t = {};
      for (int64_t h = 0; h < H; h++) {
        vec s = {};
        for (int64_t w = 0; w < W; w++) s += x[(h*W + w)*B + b]*cols[w*B + b]*spread<K>(ds + h*W + w, lines, b);
        t += s*rows[h*B + b];
      }
      T[b] = rstd[b]*(t - mean[b]*sum);
      du[b] = gamma[b]*T[b] + beta[b]*sum;
      add_sums<K>(soft[b]*du[b], b, dot);
      d.gamma[b] += soft[b]*T[b];
      d.beta[b] += soft[b]*sum;
    }
    for (int64_t b = 0; b < B; b++) d.b3[b] += du[b] = soft[b]*(du[b] - spread<K>(dot, 1, b));
  }

  // What reaches x directly, through the norm and through the convolution to one map, in place of `grad`; the strips'
  // gradients before their sigmoids; ∂w̄. `seen` is scratch memory for a frame.
  void direct(const vec* x, vec* grad, const vec* rows, const vec* cols, const float* weight, const float* q,
              const float* Q, const vec* stats, const vec* T, vec* pi, vec* seen, const Grads& d) const {
    vec *pi_h = pi, *pi_w = pi + H*B;
    for (int64_t b = 0; b < B; b++) {
      const vec mean = stats[b], rstd = stats[B + b];
      const vec coef = stats[2*B + b]*k.rest[B + b]*rstd, by_t = -coef*rstd*T[b]/float(HW);
      const vec rest = -(coef*(spread<K>(Q, 1, b)/float(HW)) + by_t*mean);
      vec tap[9], dtap[9];
      for (int j = 0; j < 9; j++) { tap[j] = k.tap[j*B + b]; dtap[j] = vec{}; }
      if (K > 1) for (int64_t i = 0; i < (H + 2)*(W + 2); i++) seen[i] = spread<K>(q + i, frame, b);
      auto around = [&](int64_t i) { return K > 1 ? seen[i] : vec{} + q[i]; };
      for (int64_t w = 0; w < W; w++) pi_w[w*B + b] = vec{};
      for (int64_t h = 0; h < H; h++) {
        const vec row = rows[h*B + b];
        vec along = {};
        for (int64_t w = 0; w < W; w++) {
          const int64_t p = h*W + w, at = h*(W + 2) + w;
          const vec v = x[p*B + b], col = cols[w*B + b], f = row*col;
          const vec dt = coef*around(at + W + 3) + by_t*(v*f) + rest, by_v = dt*v;
          along += by_v*col;
          pi_w[w*B + b] += by_v*row;
          vec out = grad[p*B + b]*spread<K>(weight + p, lines, b) + dt*f;
          for (int u = 0; u < 3; u++) for (int i = 0; i < 3; i++) {
            const vec value = around(at + (2 - u)*(W + 2) + 2 - i);
            out += tap[3*u + i]*value;
            dtap[3*u + i] += v*value;
          }
          grad[p*B + b] = out;
        }
        pi_h[h*B + b] = along*row*(1.f - row);
      }
      for (int64_t w = 0; w < W; w++) { const vec col = cols[w*B + b]; pi_w[w*B + b] *= col*(1.f - col); }
      for (int j = 0; j < 9; j++) d.tap[j*B + b] += dtap[j];
    }
  }

  // Add what comes back through the strips (`along`) and the window sums: `dS[j*pitch]` is that of tap j.
  void indirect(vec* out, const vec* along, const vec* dS, int64_t pitch) const {
    const vec *by_row = along, *by_col = along + H*B;
    for (int64_t b = 0; b < B; b++) {
      vec seen[3][3];
      for (int j = 0; j < 9; j++) seen[j/3][j%3] = dS[j*pitch + b]/float(HW);
      for (int64_t w = 0; w < W; w++) {
        vec line[3];  // what the three rows of taps add in this column
        for (int u = 0; u < 3; u++)
          line[u] = seen[u][1] + (w != W - 1 ? seen[u][0] : vec{}) + (w != 0 ? seen[u][2] : vec{});
        const vec column = by_col[w*B + b]/float(H) + line[1];
        for (int64_t h = 0; h < H; h++) {
          vec v = column + by_row[h*B + b]/float(W);
          if (h != H - 1) v += line[0];
          if (h != 0) v += line[2];
          out[(h*W + w)*B + b] += v;
        }
      }
    }
  }
};

template <int K, class T>
void ema_backward(const Tensor& x, const Tensor& grad, const Tensor& dx, const Constants& k, const Tensor& kept_strips,
                  const Tensor& kept_gate, const Tensor& kept_stats, Mix mix, bool params, const Tensor& sums,
                  float* left) {
  const int64_t C = x.size(1), H = x.size(2), W = x.size(3), HW = H*W, c = k.c, B = k.B, strips = (H + W)*B;
  const int64_t map = HW*B, lines = (HW + LANES - 1)/LANES, frame = ((H + 2)*(W + 2) + LANES - 1)/LANES;
  const Backward<K> back{group(x, c, B, W), k, mix, H, W, HW, B, frame*LANES, lines*LANES};
  const Group& g = back.g;
  const T *from = x.const_data_ptr<T>(), *from_g = grad.const_data_ptr<T>();
  T* to = dx.mutable_data_ptr<T>();
  const Tensor turned = transposed(k);
  const vec *w1 = vectors(turned), *w3 = w1 + c*B, *strips_of = vectors(kept_strips), *stats_of = vectors(kept_stats);
  const float* gate_of = kept_gate.const_data_ptr<float>();
  const int64_t batch = map*8 <= 65536/LANES ? 8 : map*4 <= 65536/LANES ? 4 : 1;
  const int64_t work = c*(40*HW + (18 + 3*(H + W))*c), grain = std::max<int64_t>(1, 8*GRAIN/work);
  at::parallel_for(0, x.size(0)*(C/c), grain, [&](int64_t begin, int64_t end) {
    vec* v = scratch(map + K*(2*lines + frame) + (K - 1)*frame*LANES + B + batch*(map + 3*strips + 19*B) + B);
    vec *outs = v + map, *means = outs + batch*map, *pis = means + batch*strips, *alongs = pis + batch*strips;
    vec *windows = alongs + batch*strips, *dS = windows + batch*9*B, *du = dS + batch*9*B;
    vec *norm_T = du + batch*B, *zero = norm_T + B, *seen = zero + B;
    float *ds = reinterpret_cast<float*>(seen + (K - 1)*frame*LANES), *weight = ds + K*back.lines;
    float* q = weight + K*back.lines;
    std::memset(v, 0, (map + batch*map)*sizeof(vec));  // the padding stays zero
    std::memset(zero, 0, B*sizeof(vec));
    std::memset(q, 0, K*frame*sizeof(vec));
    const Grads d(vectors(sums) + at::get_thread_num()*(10*c + 14)*B, c, B);
    float Q[K];
    for (int64_t unit = begin; unit < end; unit += batch) {
      const int64_t n = std::min(batch, end - unit);
      auto at = [&](int64_t i) { return (unit + i)/(C/c)*C*HW + (unit + i)%(C/c)*c*g.channel; };
      for (int64_t i = 0; i < n; i++) {
        vec *out = outs + i*map, *pi = pis + i*strips;
        const vec *rows = strips_of + (unit + i)*strips, *cols = rows + H*B, *stats = stats_of + (unit + i)*3*B;
        g.load(from + at(i), v);
        g.load(from_g + at(i), out);
        if (params) summaries(g, v, means + i*strips, windows + i*9*B);
        back.map_grad(v, out, gate_of + (unit + i)*K*HW, ds, weight, q, Q, left + (unit + i)*K);
        back.softmax_grad(v, rows, cols, ds, Q, stats, norm_T, du + i*B, d);
        back.direct(v, out, rows, cols, weight, q, Q, stats, norm_T, pi, seen, d);
      }
      affine(n*(H + W), pis, 1, c, B, w1, zero, alongs);
      for (int64_t j = 0; j < 9; j++) affine(n, du, 1, c, B, w3 + j*c*B, zero, dS + j*n*B);
      if (params) {
        outer(n*(H + W), means, 1, c, pis, B, d.w1);
        outer(n, windows, 9, c, du, B, d.w3);
        for (int64_t i = 0; i < n*(H + W); i++) for (int64_t b = 0; b < B; b++) d.b1[b] += pis[i*B + b];
      }
      for (int64_t i = 0; i < n; i++) {
        back.indirect(outs + i*map, alongs + i*strips, dS + i*B, n*B);
        g.store(outs + i*map, static_cast<const T*>(nullptr), false, to + at(i));
      }
    }
  });
}

// What pairs of groups leave, as single ones would: the other way round than `paired`.
Tensor unpaired(const Tensor& t) {
  const int64_t P = t.size(1), c = P/2;
  Tensor out = at::zeros({10*c + 14, P}, t.options());
  const float* from = t.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t row = 0; row < 10*c + 14; row++) for (int64_t k = 0; k < 2; k++) {
    const int64_t there = row < 10*c ? (row/c*2 + k)*c + row%c : row + 10*c;
    for (int64_t o = 0; o < c; o++) to[row*P + o] += from[there*P + k*c + o];
  }
  return out;
}

// The parameters' gradients from their sums over the groups: w̄ = Σ a_o W_o and a·b₃ with a = softmax(β) go back to W₃,
// b₃ and β.
std::vector<Tensor> unpack(const Tensor& t, const Tensor& packed, int64_t c) {
  const int64_t P = packed.size(1);
  const float *d = t.const_data_ptr<float>(), *taps = d + 10*c*P, *rest = taps + 9*P;
  const float *k = packed.const_data_ptr<float>(), *bias = k + (10*c + 10)*P;
  const Tensor soft = packed[10*c + 13].narrow(0, 0, c).softmax(0);
  const float* a = soft.const_data_ptr<float>();
  std::vector<Tensor> out = {floats({c, c, 1, 1}, t), floats({c}, t), floats({c, c, 3, 3}, t), floats({c}, t),
                             floats({c}, t), floats({c}, t)};
  float* p[6];
  for (int i = 0; i < 6; i++) p[i] = out[i].mutable_data_ptr<float>();
  float Q = 0, mean = 0;  // b sums to one
  for (int64_t o = 0; o < c; o++) Q += rest[4*P + o];
  std::vector<float> da(c);
  for (int64_t o = 0; o < c; o++) {
    double s = bias[o]*Q;
    for (int64_t i = 0; i < c; i++) {
      p[0][o*c + i] = d[i*P + o];
      for (int64_t j = 0; j < 9; j++) {
        p[2][(o*c + i)*9 + j] = d[(c + j*c + i)*P + o] + a[o]*taps[j*P + i];
        s += taps[j*P + i]*k[(c + j*c + i)*P + o];
      }
    }
    p[1][o] = rest[o];
    p[3][o] = rest[P + o] + a[o]*Q;
    p[4][o] = rest[3*P + o];
    mean += a[o]*(da[o] = float(s));
  }
  for (int64_t o = 0; o < c; o++) p[5][o] = rest[4*P + o] + a[o]*(da[o] - mean);
  return out;
}

using EmaGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The gradients of x, of the parameters (empty without `params`), in float32, and of γ (empty if there is none)
EmaGrads ema_grads(const Tensor& input, const Tensor& grad, const Tensor& packed, const Tensor& strips,
                const Tensor& gates, const Tensor& stats, Optional mix, bool params) {
  Tensor x = dense(input), dx = at::empty_like(x), g = like(x, grad);
  const Constants k(packed, x.size(1));
  Tensor left = floats({x.size(0)*(x.size(1)/k.c)*k.parts}, x);
  Tensor sums = at::zeros({at::get_num_threads(), k.t.size(0), k.t.size(1)}, packed.options());
  if (x.numel()) DISPATCH(x, "ema_train", [&] {
    const auto run = k.parts == 2 ? ema_backward<2, scalar_t> : ema_backward<1, scalar_t>;
    run(x, g, dx, k, strips, gates, stats, Mix(mix), params, sums, left.mutable_data_ptr<float>());
  });
  std::vector<Tensor> d;
  if (params) d = unpack(k.parts == 2 ? unpaired(sums.sum(0)) : sums.sum(0), packed, k.c/k.parts);
  else for (int i = 0; i < 6; i++) d.push_back(floats({0}, x));
  return {dx, d[0], d[1], d[2], d[3], d[4], d[5], mix_grad(mix, x, left)};
}

// ------------------------------------------------------------------------------------------------------- Without running

Five ema_meta(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
              const Tensor& beta, Optional, double, bool save) {
  auto f = [&](at::SymIntArrayRef sizes) { return x.new_empty_symint(sizes, at::kFloat); };
  const auto c = beta.sym_size(0);
  const auto P = (c + PAD - 1)/PAD*PAD, H = x.sym_size(2), W = x.sym_size(3);
  const auto groups = save ? x.sym_size(0)*x.sym_size(1)/c : c10::SymInt(0);
  return {result(x), f({c*10 + 14, P}), f({groups, H + W, P}), f({groups, H, W}), f({groups, c10::SymInt(3), P})};
}

Tensor mix_meta(Optional mix, const Tensor& x) {
  return mix ? at::empty_like(*mix) : x.new_empty_symint({c10::SymInt(0)});
}

EmaGrads ema_grads_meta(const Tensor& x, const Tensor&, const Tensor& packed, const Tensor&, const Tensor&, const Tensor&,
                     Optional mix, bool params) {
  const auto c = params ? (packed.sym_size(0) - 14)/10 : c10::SymInt(0), one = c10::SymInt(1), three = c10::SymInt(3);
  auto f = [&](at::SymIntArrayRef sizes) {
    return packed.new_empty_symint(params ? sizes : at::SymIntArrayRef{c10::SymInt(0)});
  };
  return {result(x), f({c, c, one, one}), f({c}), f({c, c, three, three}), f({c}), f({c}), f({c}), mix_meta(mix, x)};
}
}  // namespace

TORCH_LIBRARY_FRAGMENT(simam_ema, m) {
  const std::vector<at::Tag> tags = {at::Tag::flexible_layout, at::Tag::pt2_compliant_tag};
  m.def("simam_train(Tensor x, Tensor? mix, float e_lambda) -> Tensor", tags);
  m.def("simam_train_backward(Tensor x, Tensor g, Tensor? mix, float e_lambda) -> (Tensor, Tensor)", tags);
  m.def("ema_train(Tensor x, Tensor w1, Tensor b1, Tensor w3, Tensor b3, Tensor gamma, Tensor beta, Tensor? mix, "
        "float eps, bool save) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", tags);
  m.def("ema_train_backward(Tensor x, Tensor g, Tensor packed, Tensor strips, Tensor gates, Tensor stats, Tensor? mix, "
        "bool params) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", tags);
}

TORCH_LIBRARY_IMPL(simam_ema, CPU, m) {
  m.impl("simam_train", simam);
  m.impl("simam_train_backward", simam_grads);
  m.impl("ema_train", ema);
  m.impl("ema_train_backward", ema_grads);
}

TORCH_LIBRARY_IMPL(simam_ema, Meta, m) {
  m.impl("simam_train", [](const Tensor& x, Optional, double) { return result(x); });
  m.impl("simam_train_backward", [](const Tensor& x, const Tensor&, Optional mix, double) {
    return std::tuple<Tensor, Tensor>(result(x), mix_meta(mix, x)); });
  m.impl("ema_train", ema_meta);
  m.impl("ema_train_backward", ema_grads_meta);
}
