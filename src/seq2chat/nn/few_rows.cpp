// x Wᵀ + b for the few rows of a decoding pass, whose time is spent on reading W once. Each output
// is summed in a fixed order, so the bits of a row never depend on the other rows.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#ifdef __AVX512DQ__
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
// Outputs whose weights stay in the L1 cache while all rows use them.
constexpr int64_t TILE = 32;
// Multiplications below which a second thread costs more than it saves.
constexpr int64_t SERIAL = 131072;

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef float Four __attribute__((vector_size(4 * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

template <typename Vector, typename T>
inline Vector read(const T* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline Floats widen(const float* from) { return read<Floats>(from); }
inline Floats widen(const at::BFloat16* from) {  // the upper half of a float
  return (Floats)(__builtin_convertvector(read<Halves>(from), Words) << 16);
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
  return (Four)_mm_add_ps(_mm256_castps256_ps128(quarters), _mm256_extractf128_ps(quarters, 1));
#else
  Four all = {};
  for (int lane = 0; lane < LANES; lane++) all += Four{a[lane], b[lane], c[lane], d[lane]};
  return all;
#endif
}

inline void write(float* to, Four values) { std::memcpy(to, &values, sizeof values); }
inline void write(at::BFloat16* to, Four values) {
#ifdef __AVX512BF16__
  const __m128bh rounded = _mm_cvtneps_pbh((__m128)values);
  std::memcpy(to, &rounded, 4 * sizeof *to);
#else
  for (int i = 0; i < 4; i++) to[i] = values[i];
#endif
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
// or in pairs of bfloat16 with one instruction.
struct Pairs {
  using X = at::BFloat16;
  using Part = __m512bh;
  static constexpr int STEP = 32;
  static Part part(const at::BFloat16* from) { return (Part)_mm512_loadu_si512(from); }
  static Floats add(Floats sum, Part w, Part x) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, w, x);
  }
};
#endif

// The rest of a row after the last whole part, padded with zeros.
template <typename Dot, typename T>
inline typename Dot::Part rest(const T* from, int64_t n) {
  T padded[Dot::STEP] = {};
  std::memcpy(static_cast<void*>(padded), from, n * sizeof(T));
  return Dot::part(padded);
}

// y (n_row, n_out) = x (n_row, n_in) times the transpose of w (n_out, n_in), all row-major.
template <typename T>
struct Product {
  const T *w, *bias;
  T* y;
  int64_t n_in, n_out;

  template <typename Dot, int R, int O>
  void block(const typename Dot::X* x, int64_t row, int64_t out) const {
    Floats sums[O][R] = {};
    const auto* xs = x + row * n_in;
    const T* ws = w + out * n_in;
    typename Dot::Part parts[R];
    int64_t i = 0;
    for (; i + Dot::STEP <= n_in; i += Dot::STEP) {
      for (int r = 0; r < R; r++) parts[r] = Dot::part(xs + r * n_in + i);
      for (int o = 0; o < O; o++) {
        __builtin_prefetch(ws + (O + o) * n_in + i);  // the next block's weights
        const auto part = Dot::part(ws + o * n_in + i);
        for (int r = 0; r < R; r++) sums[o][r] = Dot::add(sums[o][r], part, parts[r]);
      }
    }
    if (i < n_in) {
      for (int r = 0; r < R; r++) parts[r] = rest<Dot>(xs + r * n_in + i, n_in - i);
      for (int o = 0; o < O; o++) {
        const auto part = rest<Dot>(ws + o * n_in + i, n_in - i);
        for (int r = 0; r < R; r++) sums[o][r] = Dot::add(sums[o][r], part, parts[r]);
      }
    }
    for (int r = 0; r < R; r++) {
      T* to = y + (row + r) * n_out + out;
      for (int o = 0; o + 4 <= O; o += 4) {
        Four four = totals(sums[o][r], sums[o + 1][r], sums[o + 2][r], sums[o + 3][r]);
        if (bias)
          four += Four{bias[out + o], bias[out + o + 1], bias[out + o + 2], bias[out + o + 3]};
        write(to + o, four);
      }
      if (O == 1) {  // the same operations, so that the bits do not depend on the block size
        Four four = totals(sums[0][r], Floats{}, Floats{}, Floats{});
        if (bias) four += Four{bias[out]};
        T single[4];
        write(single, four);
        to[0] = single[0];
      }
    }
  }

  template <typename Dot, int R>
  void rows(const typename Dot::X* x, int64_t row, int64_t out, int64_t end) const {
    constexpr int O = 2 * R <= ROWS ? 2 * OUTS : OUTS;
    for (; out + O <= end; out += O) block<Dot, R, O>(x, row, out);
    for (; out < end; out++) block<Dot, R, 1>(x, row, out);
  }

  template <typename Dot>
  void run(const typename Dot::X* x, int64_t n_row) const {
    const int64_t grain = std::max<int64_t>(1, SERIAL / std::max<int64_t>(1, n_in * n_row));
    at::parallel_for(0, n_out, grain, [&](int64_t begin, int64_t end) {
      for (int64_t out = begin; out < end; out += TILE) {
        const int64_t last = std::min(end, out + TILE);
        int64_t row = 0;
        for (; row + ROWS <= n_row; row += ROWS) rows<Dot, ROWS>(x, row, out, last);
        for (; row + 2 <= n_row; row += 2) rows<Dot, 2>(x, row, out, last);
        for (; row < n_row; row++) rows<Dot, 1>(x, row, out, last);
      }
    });
  }
};

template <typename T>
void multiply(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
              at::Tensor& y) {
  const int64_t n_in = weight.size(1), n_row = x.numel() / n_in;
  const Product<T> product{weight.const_data_ptr<T>(), bias ? bias->const_data_ptr<T>() : nullptr,
                           y.mutable_data_ptr<T>(), n_in, weight.size(0)};
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, at::BFloat16>) {
    const at::Tensor rows = x.contiguous();
    return product.template run<Pairs>(rows.const_data_ptr<at::BFloat16>(), n_row);
  }
#endif
  const at::Tensor rows = x.to(at::kFloat).contiguous();
  product.template run<Wide>(rows.const_data_ptr<float>(), n_row);
}

at::Tensor few_rows(const at::Tensor& x, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && weight.size(1) > 0 &&
                  x.size(-1) == weight.size(1),
              "few_rows takes x (..., d_in) and a contiguous weight (d_out, d_in)");
  TORCH_CHECK(!bias || (bias->is_contiguous() && bias->sizes() == weight.sizes().slice(0, 1)),
              "few_rows takes a bias (d_out)");
  TORCH_CHECK(x.scalar_type() == weight.scalar_type() &&
                  (!bias || bias->scalar_type() == weight.scalar_type()),
              "few_rows takes x, weight and bias in one number format");
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  at::Tensor y = at::empty(shape, x.options());
  if (weight.scalar_type() == at::kFloat)
    multiply<float>(x, weight, bias, y);
  else if (weight.scalar_type() == at::kBFloat16)
    multiply<at::BFloat16>(x, weight, bias, y);
  else
    TORCH_CHECK(false, "few_rows takes float32 or bfloat16, not ", weight.scalar_type());
  return y;
}

}  // namespace

TORCH_LIBRARY(seq2chat, library) {
  library.def("few_rows(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
}
TORCH_LIBRARY_IMPL(seq2chat, CPU, library) { library.impl("few_rows", few_rows); }
