// Vectors of floats, and products of a matrix and a few rows, whose time is spent on reading the
// matrix once.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512DQ__
constexpr int LANES = 16, ROWS = 4;
#else
constexpr int LANES = 8, ROWS = 2;
#endif
// A block has OUTS outputs and ROWS rows, or twice the outputs and half the rows: its sums stay in
// registers.
constexpr int OUTS = 4;
// Bytes of weights that stay in the L1 cache while all rows use them.
constexpr int64_t TILE = 16384;
// Buffers are padded to a multiple of this, so that whole vectors can be read and written.
constexpr int64_t PADDING = 32;

using Half = uint16_t;  // the bits of a bfloat16 number

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef float Four __attribute__((vector_size(4 * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));
typedef int8_t Bytes __attribute__((vector_size(LANES * sizeof(int8_t))));
typedef uint8_t UBytes __attribute__((vector_size(LANES * sizeof(uint8_t))));

template <typename Vector, typename T>
inline Vector read(const T* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void write(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }
inline void write(float* to, Four values) { std::memcpy(to, &values, sizeof values); }

inline Floats widen(const float* from) { return read<Floats>(from); }
inline Floats widen(const Half* from) {  // the upper half of a float
  return (Floats)(__builtin_convertvector(read<Halves>(from), Words) << 16);
}
inline Floats widen(const int8_t* from) {
#ifdef __AVX512DQ__
  return (Floats)_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  return __builtin_convertvector(__builtin_convertvector(read<Bytes>(from), Ints), Floats);
#endif
}
// Four bits of each byte, the lower or the upper ones.
inline Floats widen(const uint8_t* from, int shift) {
#ifdef __AVX512DQ__
  const __m512i bytes =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return (Floats)_mm512_cvtepi32_ps((__m512i)(((Ints)bytes >> shift) & 15));
#else
  const Ints bytes = __builtin_convertvector(read<UBytes>(from), Ints);
  return __builtin_convertvector((bytes >> shift) & 15, Floats);
#endif
}

// The totals of four sums, each added up in the same order in every position.
inline Four totals(Floats a, Floats b, Floats c, Floats d) {
#ifdef __AVX512DQ__
  const auto half = [](Floats sum) {
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)sum),
                         _mm512_extractf32x8_ps((__m512)sum, 1));
  };
  const __m256 quarters =
      _mm256_hadd_ps(_mm256_hadd_ps(half(a), half(b)), _mm256_hadd_ps(half(c), half(d)));
#elif defined(__AVX2__)
  const __m256 quarters = _mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b),
                                         _mm256_hadd_ps((__m256)c, (__m256)d));
#endif
#ifdef __AVX2__
  return (Four)_mm_add_ps(_mm256_castps256_ps128(quarters), _mm256_extractf128_ps(quarters, 1));
#else
  Four all = {};
  for (int lane = 0; lane < LANES; lane++) all += Four{a[lane], b[lane], c[lane], d[lane]};
  return all;
#endif
}

inline float total(Floats sum) { return totals(sum, Floats{}, Floats{}, Floats{})[0]; }

// e^x with a relative error of 2e-7, by e^x = 2^n e^r with |r| <= ln(2)/2 and a polynomial for e^r
// (Cephes, expf).
inline Floats exponential(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x;
  x = x > 88.0f ? Floats{} + 88.0f : x;
  const Floats scaled = x * 1.44269504f;
  const Floats half = scaled < 0.0f ? Floats{} - 0.5f : Floats{} + 0.5f;
  const Ints n = __builtin_convertvector(scaled + half, Ints);
  const Floats whole = __builtin_convertvector(n, Floats);
  const Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats power = Floats{} + 1.9875691500e-4f;
  for (float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                            1.6666665459e-1f, 5.0000001201e-1f})
    power = power * r + coefficient;
  power = power * r * r + r + 1.0f;
  return power * (Floats)((n + 127) << 23);
}

// The products of two parts, computed in floats,
struct Wide {
  using X = float;
  using Part = Floats;
  static constexpr int STEP = LANES;
  template <typename T>
  static Part part(const T* from) {
    return widen(from);
  }
  static Floats add(Floats sum, Part w, Part x) { return sum + w * x; }
};

#ifdef __AVX512BF16__
// or in pairs of bfloat16 numbers with one instruction.
struct Pairs {
  using X = Half;
  using Part = __m512bh;
  static constexpr int STEP = 32;
  static Part part(const Half* from) { return (Part)_mm512_loadu_si512(from); }
  static Floats add(Floats sum, Part w, Part x) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, w, x);
  }
};
#endif

// The rest of a row after the last whole part, padded with zeros.
template <typename Dot, typename T>
inline typename Dot::Part rest(const T* from, int64_t n) {
  T padded[Dot::STEP] = {};
  std::memcpy(padded, from, n * sizeof(T));
  return Dot::part(padded);
}

// The weights of a product: part(out, i) is a vector of those from i on, and last(out, i) that of
// those after the last whole vector. They are numbers of type T,
template <typename T, typename D>
struct Dense {
  using Dot = D;
  static constexpr int64_t BYTES = sizeof(T);
  const T* data;
  int64_t n_in;
  const T* at(int64_t out, int64_t i) const { return data + out * n_in + i; }
  auto part(int64_t out, int64_t i) const { return Dot::part(at(out, i)); }
  auto last(int64_t out, int64_t i) const { return rest<Dot>(at(out, i), n_in - i); }
};

// or 8 bits in blocks of 32 with one factor (GGUF's Q8_0),
constexpr int64_t BLOCK = 32;
struct Blocks8 {
  using Dot = Wide;
  static constexpr int64_t BYTES = 1;
  const int8_t* data;
  const float* scale;
  int64_t n_in;
  const int8_t* at(int64_t out, int64_t i) const { return data + out * n_in + i; }
  Floats part(int64_t out, int64_t i) const {
    return widen(at(out, i)) * scale[(out * n_in + i) / BLOCK];
  }
  Floats last(int64_t, int64_t) const { return Floats{}; }  // n_in is a multiple of the block
};

// or 4 bits in blocks of 32 with a factor and a lowest number (Q4_0, Q4_1). The lower halves of the
// 16 bytes of a block come first.
struct Blocks4 {
  using Dot = Wide;
  static constexpr int64_t BYTES = 1;
  const uint8_t* data;
  const float *scale, *lowest;
  int64_t n_in;
  const uint8_t* at(int64_t out, int64_t i) const {
    return data + (out * n_in + i) / BLOCK * (BLOCK / 2) + i % (BLOCK / 2);
  }
  Floats part(int64_t out, int64_t i) const {
    const int64_t block = (out * n_in + i) / BLOCK;
    return widen(at(out, i), i % BLOCK < BLOCK / 2 ? 0 : 4) * scale[block] + lowest[block];
  }
  Floats last(int64_t, int64_t) const { return Floats{}; }
};

// y[row, out] = scale[out] · Σ_i x[row, i] w[out, i] + bias[out], or added to y.
template <typename Weights>
struct Product {
  using Dot = typename Weights::Dot;
  using X = typename Dot::X;
  Weights w;
  const float *scale, *bias;
  int64_t n_in;
  const X* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
  bool adds;

  template <int R, int O>
  void block(int64_t row, int64_t out) const {
    Floats sums[O][R] = {};
    typename Dot::Part parts[R];
    const X* xs = x + row * x_stride;
    int64_t i = 0;
    for (; i + Dot::STEP <= n_in; i += Dot::STEP) {
      for (int r = 0; r < R; r++) parts[r] = Dot::part(xs + r * x_stride + i);
      for (int o = 0; o < O; o++) {
        __builtin_prefetch(w.at(out + O + o, i));  // the next block's weights
        const auto part = w.part(out + o, i);
        for (int r = 0; r < R; r++) sums[o][r] = Dot::add(sums[o][r], part, parts[r]);
      }
    }
    if (i < n_in) {
      for (int r = 0; r < R; r++) parts[r] = rest<Dot>(xs + r * x_stride + i, n_in - i);
      for (int o = 0; o < O; o++) {
        const auto part = w.last(out + o, i);
        for (int r = 0; r < R; r++) sums[o][r] = Dot::add(sums[o][r], part, parts[r]);
      }
    }
    for (int r = 0; r < R; r++) {
      float* to = y + (row + r) * y_stride + out;
      for (int o = 0; o + 4 <= O; o += 4) {
        const Four four = totals(sums[o][r], sums[o + 1][r], sums[o + 2][r], sums[o + 3][r]);
        write(to + o, finished(four, scale ? read<Four>(scale + out + o) : Four{} + 1.0f,
                               bias ? read<Four>(bias + out + o) : Four{},
                               adds ? read<Four>(to + o) : Four{}));
      }
      if (O == 1) {
        const Four four = totals(sums[0][r], Floats{}, Floats{}, Floats{});
        to[0] = finished(four, Four{} + (scale ? scale[out] : 1.0f),
                         Four{} + (bias ? bias[out] : 0.0f), Four{} + (adds ? to[0] : 0.0f))[0];
      }
    }
  }

  // The same operations for blocks of every size, so that the bits do not depend on it.
  static Four finished(Four sums, Four factors, Four offsets, Four before) {
    return sums * factors + offsets + before;
  }

  template <int R>
  void rows(int64_t row, int64_t out, int64_t end) const {
    constexpr int O = 2 * R <= ROWS ? 2 * OUTS : OUTS;
    for (; out + O <= end; out += O) block<R, O>(row, out);
    for (; out < end; out++) block<R, 1>(row, out);
  }

  void run(int64_t n_row, int64_t begin, int64_t end) const {
    constexpr int64_t unit = 2 * OUTS;
    const int64_t tile = std::max(unit, TILE / (n_in * Weights::BYTES) / unit * unit);
    for (int64_t out = begin; out < end; out += tile) {
      const int64_t last = std::min(end, out + tile);
      int64_t row = 0;
      for (; row + ROWS <= n_row; row += ROWS) rows<ROWS>(row, out, last);
      for (; row + 2 <= n_row; row += 2) rows<2>(row, out, last);
      for (; row < n_row; row++) rows<1>(row, out, last);
    }
  }
};

}  // namespace
