// Vectors of numbers of neighbouring coordinates, their exponentials, and tiles of rows.

#ifndef L2LJAX_VECTORS_H_
#define L2LJAX_VECTORS_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace l2ljax {

#if defined(__clang__)
#error "this was written for, and tested with, GCC: what Clang 14 makes of it crashes"
#endif

#define INLINE inline __attribute__((always_inline))

// Vectors as wide as the machine's. An operand that `IN_REGISTER` names is loaded once: compilers
// would load it again for each product.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8;
#define IN_REGISTER(x) __asm__("" : "+x"(x))
#else
#error "this was written for, and measured on, x86-64 with AVX2 or AVX-512"
#endif

typedef float Vector __attribute__((vector_size(4 * LANES), may_alias));
typedef std::int32_t Integers __attribute__((vector_size(4 * LANES), may_alias));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE Vector all(float x) { return x - Vector{}; }

// The larger and the smaller of two; y where one of them is not a number.
#if defined(__AVX512F__)
INLINE Vector larger(Vector x, Vector y) { return _mm512_max_ps(x, y); }
INLINE Vector smaller(Vector x, Vector y) { return _mm512_min_ps(x, y); }
#else
INLINE Vector larger(Vector x, Vector y) { return _mm256_max_ps(x, y); }
INLINE Vector smaller(Vector x, Vector y) { return _mm256_min_ps(x, y); }
#endif

// 2^y - 1 in two parts: 2^y = scale (1 + rest).
struct Power {
  Vector scale, rest;
};

// 2^y of y = doublings x, of size below 120.
INLINE Power power(Vector x, float doublings) {
  // The nearest whole number: the last bits of a number as large count ones.
  Vector shifted = x * doublings + 12582912.0f;
  Vector r = x * doublings - (shifted - 12582912.0f);
  // 2^r - 1 = r q(r) on [-1 / 2, 1 / 2]; q has the least relative error, 1.7e-8.
  Vector q = all(0.00015398378f);
  q = q * r + 0.0013387788f;
  q = q * r + 0.009618249f;
  q = q * r + 0.055503666f;
  q = q * r + 0.24022649f;
  q = q * r + 0.6931472f;
  Integers scale = ((Integers)shifted << 23) + 0x3f800000;
  return {(Vector)scale, q * r};
}

// 1 + exp(-x), so that σ(x) is one over it.
INLINE Vector one_plus_exp_minus(Vector x) {
  Power e = power(smaller(all(60.0f), larger(all(-60.0f), x)), -1.44269504f);
  return e.scale * e.rest + (e.scale + 1.0f);
}

// exp(2 x) - 1 =: e, so that tanh(x) is e / (e + 2), to the last bits where x is small.
INLINE Vector expm1_of_twice(Vector x) {
  Power e = power(smaller(all(10.0f), larger(all(-10.0f), x)), 2.88539008f);
  return e.scale * e.rest + (e.scale - 1.0f);
}

// Two vectors, one number for each coordinate of a tile: with four sums of these all registers of
// the multipliers are busy.
constexpr int TILE = 2 * LANES;

struct Pair {
  Vector a, b;
};

INLINE Pair both(float x) { return {all(x), all(x)}; }
INLINE Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }
INLINE Pair operator-(Pair x, Pair y) { return {x.a - y.a, x.b - y.b}; }
INLINE Pair operator*(Pair x, Pair y) { return {x.a * y.a, x.b * y.b}; }
INLINE Pair operator/(Pair x, Pair y) { return {x.a / y.a, x.b / y.b}; }
INLINE Pair operator+(Pair x, float y) { return x + both(y); }
INLINE Pair operator*(float x, Pair y) { return both(x) * y; }
INLINE Pair operator-(float x, Pair y) { return both(x) - y; }
INLINE Pair operator/(float x, Pair y) { return both(x) / y; }
INLINE Pair one_plus_exp_minus(Pair x) {
  return {one_plus_exp_minus(x.a), one_plus_exp_minus(x.b)};
}
INLINE Pair expm1_of_twice(Pair x) { return {expm1_of_twice(x.a), expm1_of_twice(x.b)}; }

INLINE void add_product(Pair &sum, float weight, Pair x) {
  Vector w = all(weight);
  IN_REGISTER(w);
  sum.a += w * x.a;
  sum.b += w * x.b;
}

struct Four {
  Pair p, q, r, s;
};

// sums += weights x, for the four weights that begin at `weights`.
INLINE void add_products(Four &sums, const float *weights, Pair x) {
  IN_REGISTER(x.a);
  IN_REGISTER(x.b);
  add_product(sums.p, weights[0], x);
  add_product(sums.q, weights[1], x);
  add_product(sums.r, weights[2], x);
  add_product(sums.s, weights[3], x);
}

// Asks for the part of a row that the tile after the next wants: a tile touches some hundred rows,
// more than the machine foresees. It comes into the second cache, since the tiles until then fill
// the first. In assembly, because GCC drops calls of what does nothing but `__builtin_prefetch`.
INLINE void expect(const float *row) {
  __asm__ volatile("prefetcht1 %0" : : "m"(row[2 * TILE]));
  __asm__ volatile("prefetcht1 %0" : : "m"(row[2 * TILE + LANES]));
}

// The same of a line of memory, and of all lines of what will be written.
constexpr int LINE = 64;

INLINE void expect_line(const char *line) {
  __asm__ volatile("prefetcht1 %0" : : "m"(*line));
}

template <typename Written>
INLINE void expect_writing(const Written *what) {
  for (size_t i = 0; i < sizeof(Written); i += LINE)
    __asm__ volatile("prefetchw %0" : : "m"(((const char *)what)[i]));
}

// A tile of one row: `count` numbers that exist, zeros after them.
INLINE Pair load(const float *row, int count) {
  if (count == TILE) return {*(const Unaligned *)row, *(const Unaligned *)(row + LANES)};
  Pair x{};
  std::memcpy(&x, row, sizeof(float) * count);
  return x;
}

// The same with the last number that exists in the place of zeros: what is computed of coordinates
// that do not exist is then as finite as that of one that does, and times zero it is zero.
INLINE Pair load_repeating(const float *row, int count) {
  Pair x = load(row, count);
  float *numbers = (float *)&x;
  for (int i = count; i < TILE; ++i) numbers[i] = numbers[count - 1];
  return x;
}

INLINE void store(float *row, Pair x, int count) {
  if (count == TILE) {
    *(Unaligned *)row = x.a;
    *(Unaligned *)(row + LANES) = x.b;
  } else {
    std::memcpy(row, &x, sizeof(float) * count);
  }
}

// The least multiple of a number that is no less than `size`.
constexpr int rounded_up(int size, int of) { return (size + of - 1) / of * of; }

}  // namespace l2ljax

#endif  // L2LJAX_VECTORS_H_
