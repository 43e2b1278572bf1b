// Gradients by the weights: sums over coordinates of outer products.

#ifndef L2LJAX_SUMS_H_
#define L2LJAX_SUMS_H_

#include <utility>
#include <vector>

#include "network.h"
#include "vectors.h"

namespace l2ljax {

constexpr int BLOCK = 8;

// Gradients by the weights, summed over a range of coordinates. Kernels have rows and columns that do
// not exist, up to whole blocks of `add_outer`. Numbers are added to the sums of a few tiles first,
// and those to the sums of all: one long sum in single precision would stand still.
class Sums {
  static constexpr int FEW = 32;
  std::vector<float> few, all;
  std::vector<size_t> starts;   // of each layer's kernel and bias in turn, of the output
  int tiles = 0;

 public:
  explicit Sums(const Network &net) {
    size_t size = 0;
    auto add = [&](size_t numbers) { starts.push_back(std::exchange(size, size + numbers)); };
    for (const Layer &layer : net.layers) {
      int width = rounded_up(layer.gates(), LANES);
      add(size_t(rounded_up(layer.depth, BLOCK)) * width);
      add(width);
    }
    add(net.layers.back().units);
    add(1);
    few.resize(size);
    all.resize(size);
  }

  // Where to add those of argument `weight`, in the order of arguments.
  float *operator[](size_t weight) { return few.data() + starts[weight]; }

  const float *total(size_t weight) const { return all.data() + starts[weight]; }

  void finish() {
    for (size_t i = 0; i < few.size(); ++i) all[i] += std::exchange(few[i], 0.0f);
    tiles = 0;
  }

  void after_tile() {
    if (++tiles == FEW) finish();
  }
};

INLINE float sum(Pair x) {
  Vector halves = x.a + x.b;
  float total = 0;
  for (int j = 0; j < LANES; ++j) total += halves[j];
  return total;
}

// Exchanges bit S of row and column, in the matrix of LANES vectors.
template <int S, int... J>
INLINE void exchange(Vector *rows, std::integer_sequence<int, J...>) {
  for (int i = 0; i < LANES; ++i) {
    if (i & S) continue;
    Vector a = rows[i], b = rows[i | S];
    rows[i] = __builtin_shufflevector(a, b, (J & S ? LANES + (J ^ S) : J)...);
    rows[i | S] = __builtin_shufflevector(a, b, (J & S ? LANES + J : J ^ S)...);
  }
}

template <int S = 1>
INLINE void transpose(Vector *rows) {
  exchange<S>(rows, std::make_integer_sequence<int, LANES>());
  if constexpr (2 * S < LANES) transpose<2 * S>(rows);
}

// sums[k][r] += Σ_b rows[k][b] columns[b][r] of four k, two vectors of r and all b of a tile.
INLINE void add_outer_four(const float *rows, const float *columns, int width, float *sums) {
  auto at = [&](int k) { return sums + size_t(k) * width; };
  Four s = {load(at(0), TILE), load(at(1), TILE), load(at(2), TILE), load(at(3), TILE)};
  for (int b = 0; b < TILE; ++b, ++rows, columns += width) {
    Pair d = load(columns, TILE);
    IN_REGISTER(d.a);
    IN_REGISTER(d.b);
    add_product(s.p, rows[0 * TILE], d);
    add_product(s.q, rows[1 * TILE], d);
    add_product(s.r, rows[2 * TILE], d);
    add_product(s.s, rows[3 * TILE], d);
  }
  store(at(0), s.p, TILE), store(at(1), s.q, TILE);
  store(at(2), s.r, TILE), store(at(3), s.s, TILE);
}

// The same of BLOCK k and one vector of r.
INLINE void add_outer(const float *rows, const float *columns, int width, float *sums) {
  auto at = [&](int k) -> Unaligned & { return *(Unaligned *)(sums + size_t(k) * width); };
  Vector s0 = at(0), s1 = at(1), s2 = at(2), s3 = at(3);
  Vector s4 = at(4), s5 = at(5), s6 = at(6), s7 = at(7);
  for (int b = 0; b < TILE; ++b, ++rows, columns += width) {
    Vector d = *(const Unaligned *)columns;
    IN_REGISTER(d);
    s0 += rows[0 * TILE] * d;
    s1 += rows[1 * TILE] * d;
    s2 += rows[2 * TILE] * d;
    s3 += rows[3 * TILE] * d;
    s4 += rows[4 * TILE] * d;
    s5 += rows[5 * TILE] * d;
    s6 += rows[6 * TILE] * d;
    s7 += rows[7 * TILE] * d;
  }
  at(0) = s0, at(1) = s1, at(2) = s2, at(3) = s3;
  at(4) = s4, at(5) = s5, at(6) = s6, at(7) = s7;
}

}  // namespace l2ljax

#endif  // L2LJAX_SUMS_H_
