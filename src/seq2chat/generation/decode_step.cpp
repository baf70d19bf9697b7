// One decoding step of a GPT on a CPU: one more token for each of a few rows, in one pass over the
// weights. `decode_step.py` compiles this file and calls it; `GPT.step` is its plain twin.
//
// Every number of a row is computed by one thread in a fixed order, so its bits depend neither on
// the other rows nor on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "few_rows.h"

extern "C" {

enum Format : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, BLOCKS8 = 3, BLOCKS4 = 4 };

// (n_out, n_in), row-major. `scale` holds one factor per output of an INT8 matrix, or per block of
// a matrix in blocks, and `lowest` the lowest number of each block of 4 bits.
struct Matrix {
  const void* data;
  const float *scale, *lowest, *bias;
  int64_t n_out, n_in;
  int32_t format;
};

struct Norm {
  const float *weight, *bias;  // without a bias, RMSNorm
};

struct Layer {
  Norm input_norm, mlp_norm, q_norm, k_norm;  // without weights, none
  Matrix q, k, v, o, gate, up, down;          // without a gate, GELU
  int64_t window;                             // 0 if the layer sees all keys
};

struct Model {
  Matrix embedding, positions, head;  // without positions, rotary
  const float *cosines, *sines;       // (context, d_head / 2)
  Norm norm;
  const Layer* layers;
  int64_t n_layer, d_model, d_ff, n_head, n_kv_head, d_head;
  float norm_eps, scale;
};

// The rows of a step. Row i is in slot `slots[i]` of the cache, where its token gets the place
// `places[i]`; it sees the keys from `firsts[i]` on, and `firsts[i]` has position 0.
struct Rows {
  int64_t n;
  const int64_t *tokens, *slots, *places, *firsts;
  float *const *keys, *const *values;  // one per layer, (n_slot, n_kv_head, room, d_head)
  int64_t room;
  float* logits;  // (n, vocab)
};

}  // extern "C"

namespace {

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t n) : numbers(new T[n + PADDING]()) {}
  T* at(int64_t i = 0) const { return numbers.get() + i; }

 private:
  std::unique_ptr<T[]> numbers;
};

inline int64_t padded(int64_t n) { return (n + PADDING - 1) / PADDING * PADDING; }

// The inputs of a product: floats, or bfloat16 numbers for weights that are multiplied in pairs.
class Inputs {
 public:
  Inputs(int64_t n_row, int64_t width)
      : stride(padded(width)), floats(n_row * stride), halves(n_row * stride) {}
  float* row(int64_t i) const { return floats.at(i * stride); }
  // Call this after the floats of a row, or a part of them, have been written for these readers.
  template <typename... Readers>
  void ready(int64_t i, int64_t begin, int64_t end, const Readers&... readers) const {
#ifdef __AVX512BF16__
    if (((readers.format != BFLOAT16) && ...)) return;
    const float* from = row(i);
    Half* to = halves.at(i * stride);
    int64_t k = begin;
    for (; k + LANES <= end; k += LANES) {
      const __m256bh numbers = _mm512_cvtneps_pbh((__m512)widen(from + k));
      std::memcpy(to + k, &numbers, sizeof numbers);
    }
    if (k < end) {
      const __m256bh numbers = _mm512_cvtneps_pbh((__m512)rest<Wide>(from + k, end - k));
      std::memcpy(to + k, &numbers, (end - k) * sizeof *to);
    }
#endif
  }

  const int64_t stride;
  Buffer<float> floats;
  Buffer<Half> halves;
};

// Outputs from `begin` to `end` of a linear map for all rows.
void multiply(const Matrix& m, const Inputs& x, int64_t n_row, float* y, int64_t y_stride,
              bool adds, int64_t begin, int64_t end) {
  const auto run = [&](auto weights, const auto* xs, const float* scale = nullptr) {
    using Map = Product<decltype(weights)>;
    Map{weights, scale, m.bias, m.n_in, xs, x.stride, y, y_stride, adds}.run(n_row, begin, end);
  };
  const float* xs = x.floats.at();
  switch (m.format) {
    case FLOAT32:
      return run(Dense<float, Wide>{static_cast<const float*>(m.data), m.n_in}, xs);
    case INT8:
      return run(Dense<int8_t, Wide>{static_cast<const int8_t*>(m.data), m.n_in}, xs, m.scale);
    case BLOCKS8:
      return run(Blocks8{static_cast<const int8_t*>(m.data), m.scale, m.n_in}, xs);
    case BLOCKS4:
      return run(Blocks4{static_cast<const uint8_t*>(m.data), m.scale, m.lowest, m.n_in}, xs);
    default:
#ifdef __AVX512BF16__
      return run(Dense<Half, Pairs>{static_cast<const Half*>(m.data), m.n_in}, x.halves.at());
#else
      return run(Dense<Half, Wide>{static_cast<const Half*>(m.data), m.n_in}, xs);
#endif
  }
}

void copy_row(const Matrix& m, int64_t i, float* to, bool adds) {
  for (int64_t k = 0; k < m.n_in; k++) {
    float value;
    if (m.format == FLOAT32) {
      value = static_cast<const float*>(m.data)[i * m.n_in + k];
    } else {
      const uint32_t bits = static_cast<uint32_t>(static_cast<const Half*>(m.data)[i * m.n_in + k])
                            << 16;
      std::memcpy(&value, &bits, sizeof value);
    }
    to[k] = adds ? to[k] + value : value;
  }
}

// Σ f(x_k), where f maps vectors to vectors.
template <typename F>
inline float sum_of(const float* x, int64_t n, F f) {
  Floats sum = {};
  int64_t k = 0;
  for (; k + LANES <= n; k += LANES) sum += f(widen(x + k));
  float all = total(sum);
  for (; k < n; k++) all += f(Floats{} + x[k])[0];
  return all;
}

void normalize(const Norm& norm, float eps, const float* x, float* to, int64_t n) {
  float mean = 0.0f;
  if (norm.bias) mean = sum_of(x, n, [](Floats v) { return v; }) / n;
  const float variance = sum_of(x, n, [=](Floats v) { return (v - mean) * (v - mean); }) / n;
  const float inverse = 1.0f / std::sqrt(variance + eps);
  for (int64_t k = 0; k < n; k++) {
    const float scaled = (x[k] - mean) * inverse * norm.weight[k];
    to[k] = norm.bias ? scaled + norm.bias[k] : scaled;
  }
}

void rotate(float* x, const float* cosines, const float* sines, int64_t n_half) {
  for (int64_t i = 0; i < n_half; i++) {
    const float first = x[i], second = x[i + n_half];
    x[i] = first * cosines[i] - second * sines[i];
    x[i + n_half] = second * cosines[i] + first * sines[i];
  }
}

// x · sigmoid(factor · (x + cubic · x³)): SiLU, and GELU in its tanh form.
inline void gated(float* x, int64_t n, float factor, float cubic) {
  for (int64_t k = 0; k < n; k += LANES) {
    const Floats v = widen(x + k);
    write(x + k, v / (1.0f + exponential(-factor * (v + cubic * v * v * v))));
  }
}

constexpr float GELU_FACTOR = 1.5957691216f, GELU_CUBIC = 0.044715f;  // 2 √(2/π)

// A moment of waiting that leaves the core to its other hardware thread.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// Waits of a few microseconds between the parts of a step: spinning, and after a while giving the
// core to others.
class Barrier {
 public:
  explicit Barrier(int n) : n(n) {}
  void wait() {
    const int now = round.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == n) {
      arrived.store(0, std::memory_order_relaxed);
      round.store(now + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round.load(std::memory_order_acquire) == now; spins++)
      spins < SPINS ? pause() : std::this_thread::yield();
  }

 private:
  static constexpr int SPINS = 1000;
  const int n;
  std::atomic<int> arrived{0}, round{0};
};

class Step {
 public:
  Step(const Model& model, int n_thread, int64_t max_rows)
      : m(model),
        layers(model.layers, model.layers + model.n_layer),
        n_thread(n_thread),
        barrier(n_thread),
        stream(max_rows * model.d_model),
        queries(max_rows, model.n_head * model.d_head),
        contexts(max_rows, model.n_head * model.d_head),
        hidden(max_rows, model.d_ff) {
    for (int t = 0; t < n_thread; t++) {
      normed.emplace_back(new Inputs(max_rows, m.d_model));
      scratch.emplace_back(new std::vector<float>());
    }
    for (int t = 1; t < n_thread; t++) threads.emplace_back([this, t] { work(t); });
  }

  ~Step() {
    ends = true;
    begun.fetch_add(1);
    begun.notify_all();
    for (auto& thread : threads) thread.join();
  }

  void run(const Rows& next) {
    rows = next;
    begun.fetch_add(1, std::memory_order_release);
    begun.notify_all();
    compute(0);
  }

 private:
  void work(int thread) {
    for (int64_t seen = 0;; seen++) {
      // Steps follow each other quickly while a text is written.
      for (int spins = 0; begun.load(std::memory_order_acquire) == seen; spins++)
        spins < IDLE_SPINS ? pause() : begun.wait(seen, std::memory_order_acquire);
      if (ends) return;
      compute(thread);
    }
  }

  // The part of [0, n) that belongs to a thread, in whole units.
  std::pair<int64_t, int64_t> part(int thread, int64_t n, int64_t unit) const {
    const int64_t n_unit = (n + unit - 1) / unit;
    const auto bound = [&](int t) { return std::min(n, n_unit * t / n_thread * unit); };
    return {bound(thread), bound(thread + 1)};
  }

  void compute(int thread) {
    auto [first, last] = part(thread, rows.n, 1);
    for (int64_t row = first; row < last; row++) {
      float* x = stream.at(row * m.d_model);
      copy_row(m.embedding, rows.tokens[row], x, false);
      if (m.positions.data) copy_row(m.positions, position(row), x, true);
    }
    barrier.wait();
    for (int64_t index = 0; index < m.n_layer; index++) {
      const Layer& layer = layers[index];
      project(thread, index);
      barrier.wait();
      attend(thread, index);
      barrier.wait();
      add(thread, layer.o, contexts);
      barrier.wait();
      widen_stream(thread, layer);
      barrier.wait();
      add(thread, layer.down, hidden);
      barrier.wait();
    }
    normalize_stream(thread, m.norm, m.head);
    auto [begin, end] = part(thread, m.head.n_out, OUTS * 2);
    multiply(m.head, *normed[thread], rows.n, rows.logits, m.head.n_out, false, begin, end);
    barrier.wait();
  }

  int64_t position(int64_t row) const { return rows.places[row] - rows.firsts[row]; }

  // Every thread normalizes all rows for itself, which takes less time than waiting.
  template <typename... Readers>
  void normalize_stream(int thread, const Norm& norm, const Readers&... readers) {
    const Inputs& to = *normed[thread];
    for (int64_t row = 0; row < rows.n; row++) {
      normalize(norm, m.norm_eps, stream.at(row * m.d_model), to.row(row), m.d_model);
      to.ready(row, 0, m.d_model, readers...);
    }
  }

  // Queries, and new keys and values in the cache. A thread computes whole heads.
  void project(int thread, int64_t index) {
    const Layer& layer = layers[index];
    normalize_stream(thread, layer.input_norm, layer.q, layer.k, layer.v);
    const int64_t n_kv = m.n_kv_head * m.d_head, n_q = m.n_head * m.d_head;
    const auto [begin, end] = part(thread, n_q + 2 * n_kv, m.d_head);
    const auto overlap = [&](int64_t from, int64_t n) {
      return std::pair(std::clamp(begin - from, int64_t{0}, n),
                       std::clamp(end - from, int64_t{0}, n));
    };
    const auto [q_begin, q_end] = overlap(0, n_q);
    multiply(layer.q, *normed[thread], rows.n, queries.row(0), queries.stride, false, q_begin,
             q_end);
    for (int64_t row = 0; row < rows.n; row++)
      turn(layer.q_norm, row, queries.row(row), q_begin, q_end);
    const auto [k_begin, k_end] = overlap(n_q, n_kv);
    const auto [v_begin, v_end] = overlap(n_q + n_kv, n_kv);
    std::vector<float>& buffer = *scratch[thread];
    buffer.resize(std::max<size_t>(buffer.size(), 2 * rows.n * n_kv));
    float *k = buffer.data(), *v = k + rows.n * n_kv;
    multiply(layer.k, *normed[thread], rows.n, k, n_kv, false, k_begin, k_end);
    multiply(layer.v, *normed[thread], rows.n, v, n_kv, false, v_begin, v_end);
    for (int64_t row = 0; row < rows.n; row++) {
      turn(layer.k_norm, row, k + row * n_kv, k_begin, k_end);
      store(rows.keys[index], row, k + row * n_kv, k_begin, k_end);
      store(rows.values[index], row, v + row * n_kv, v_begin, v_end);
    }
  }

  // Normalize and rotate the heads of one row.
  void turn(const Norm& norm, int64_t row, float* x, int64_t begin, int64_t end) const {
    const int64_t n_half = m.d_head / 2, at = position(row) * n_half;
    for (int64_t i = begin; i < end; i += m.d_head) {
      if (norm.weight) normalize(norm, m.norm_eps, x + i, x + i, m.d_head);
      if (m.cosines) rotate(x + i, m.cosines + at, m.sines + at, n_half);
    }
  }

  float* stored(float* cache, int64_t row, int64_t kv_head) const {
    return cache + (rows.slots[row] * m.n_kv_head + kv_head) * rows.room * m.d_head;
  }

  void store(float* cache, int64_t row, const float* x, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; i += m.d_head)
      std::memcpy(stored(cache, row, i / m.d_head) + rows.places[row] * m.d_head, x + i,
                  m.d_head * sizeof(float));
  }

  // The query heads that share a key head are the rows of one product.
  void attend(int thread, int64_t index) {
    const int64_t group = m.n_head / m.n_kv_head;
    auto [first, last] = part(thread, rows.n * m.n_kv_head, 1);
    for (int64_t item = first; item < last; item++) {
      const int64_t row = item / m.n_kv_head, kv_head = item % m.n_kv_head;
      const int64_t end = rows.places[row] + 1, window = layers[index].window;
      const int64_t begin = std::max(rows.firsts[row], window ? end - window : 0);
      const int64_t n_key = end - begin, stride = padded(n_key);
      std::vector<float>& scores = *scratch[thread];
      scores.resize(std::max<size_t>(scores.size(), group * stride + PADDING));
      const float* keys = stored(rows.keys[index], row, kv_head) + begin * m.d_head;
      const float* values = stored(rows.values[index], row, kv_head) + begin * m.d_head;
      const int64_t head = kv_head * group * m.d_head;
      Product<Dense<float, Wide>>{{keys, m.d_head}, nullptr,  nullptr,       m.d_head,
                                  queries.row(row) + head, m.d_head, scores.data(), stride, false}
          .run(group, 0, n_key);
      for (int64_t g = 0; g < group; g++) {
        float* weights = scores.data() + g * stride;
        softmax(weights, n_key, m.scale);
        mix(weights, values, n_key, contexts.row(row) + head + g * m.d_head);
      }
      contexts.ready(row, head, head + group * m.d_head, layers[index].o);
    }
  }

  static void softmax(float* scores, int64_t n, float scale) {
    float highest = scores[0];
    for (int64_t k = 1; k < n; k++) highest = std::max(highest, scores[k]);
    for (int64_t k = 0; k < n; k += LANES)
      write(scores + k, exponential((widen(scores + k) - highest) * scale));
    const float inverse = 1.0f / sum_of(scores, n, [](Floats v) { return v; });
    for (int64_t k = 0; k < n; k++) scores[k] *= inverse;
  }

  // to = Σ weights[k] values[k], by whole vectors and then single numbers.
  void mix(const float* weights, const float* values, int64_t n_key, float* to) const {
    constexpr int VECTORS = 4;
    int64_t d = 0;
    for (; d + VECTORS * LANES <= m.d_head; d += VECTORS * LANES) {
      Floats sums[VECTORS] = {};
      for (int64_t k = 0; k < n_key; k++)
        for (int i = 0; i < VECTORS; i++)
          sums[i] += weights[k] * widen(values + k * m.d_head + d + i * LANES);
      for (int i = 0; i < VECTORS; i++) write(to + d + i * LANES, sums[i]);
    }
    for (; d + LANES <= m.d_head; d += LANES) {
      Floats sum = {};
      for (int64_t k = 0; k < n_key; k++) sum += weights[k] * widen(values + k * m.d_head + d);
      write(to + d, sum);
    }
    for (; d < m.d_head; d++) {
      float sum = 0.0f;
      for (int64_t k = 0; k < n_key; k++) sum += weights[k] * values[k * m.d_head + d];
      to[d] = sum;
    }
  }

  // The residual connection: the stream plus the linear map of `x`.
  void add(int thread, const Matrix& matrix, const Inputs& x) {
    auto [begin, end] = part(thread, m.d_model, OUTS * 2);
    multiply(matrix, x, rows.n, stream.at(), m.d_model, true, begin, end);
  }

  // The wide layer of the MLP.
  void widen_stream(int thread, const Layer& layer) {
    normalize_stream(thread, layer.mlp_norm, layer.up, layer.gate);
    auto [begin, end] = part(thread, m.d_ff, PADDING);
    multiply(layer.up, *normed[thread], rows.n, hidden.row(0), hidden.stride, false, begin, end);
    std::vector<float>& gates = *scratch[thread];
    if (layer.gate.data) {
      gates.resize(std::max<size_t>(gates.size(), rows.n * hidden.stride + PADDING));
      multiply(layer.gate, *normed[thread], rows.n, gates.data(), hidden.stride, false, begin, end);
    }
    for (int64_t row = 0; row < rows.n; row++) {
      float* up = hidden.row(row);
      if (layer.gate.data) {
        float* gate = gates.data() + row * hidden.stride;
        gated(gate + begin, end - begin, 1.0f, 0.0f);
        for (int64_t k = begin; k < end; k++) up[k] *= gate[k];
      } else {
        gated(up + begin, end - begin, GELU_FACTOR, GELU_CUBIC);
      }
      hidden.ready(row, begin, end, layer.down);
    }
  }

  static constexpr int IDLE_SPINS = 2000;
  const Model m;
  const std::vector<Layer> layers;
  const int n_thread;
  Rows rows{};
  Barrier barrier;
  Buffer<float> stream;
  Inputs queries, contexts, hidden;
  std::vector<std::unique_ptr<Inputs>> normed;                 // one per thread
  std::vector<std::unique_ptr<std::vector<float>>> scratch;  // one per thread
  std::vector<std::thread> threads;
  std::atomic<int64_t> begun{0};
  std::atomic<bool> ends{false};
};

}  // namespace

extern "C" {

void* step_new(const Model* model, int32_t n_thread, int64_t max_rows) {
  return new Step(*model, n_thread, max_rows);
}
void step_run(void* step, const Rows* rows) { static_cast<Step*>(step)->run(*rows); }
void step_delete(void* step) { delete static_cast<Step*>(step); }
}
