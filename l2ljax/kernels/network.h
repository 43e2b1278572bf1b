// The weights of the network in the order in which they are read, and its gates.

#ifndef L2LJAX_NETWORK_H_
#define L2LJAX_NETWORK_H_

#include <algorithm>
#include <cstddef>
#include <vector>

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace l2ljax {

namespace ffi = xla::ffi;
using Buffer = ffi::Buffer<ffi::F32>;
using std::size_t;

// A number for each gate of a unit.
typedef float Gates __attribute__((vector_size(16), aligned(4), may_alias));

// The weights of a layer, copied into the order in which they are read.
struct Layer {
  int inputs, units, depth;      // depth: inputs and hidden units
  std::vector<float> forward;    // [units][1 + depth][4]: biases, then weights, of the four gates
  std::vector<float> backward;   // [depth / 4, rounded up][4 units][4]

  int gates() const { return 4 * units; }

  Layer(const Buffer &kernel, const Buffer &bias, bool transposed)
      : units(int(kernel.dimensions()[1] / 4)), depth(int(kernel.dimensions()[0])) {
    inputs = depth - units;
    const float *w = kernel.typed_data(), *b = bias.typed_data();
    forward.resize(size_t(1 + depth) * gates());
    Gates *to = (Gates *)forward.data();
    for (int u = 0; u < units; ++u)
      for (int k = -1; k < depth; ++k) {
        const float *from = (k < 0 ? b : w + k * gates()) + u;
        *to++ = Gates{from[0], from[units], from[2 * units], from[3 * units]};
      }
    if (!transposed) return;
    backward.resize(size_t(rounded_up(depth, 4)) * gates());
    for (int k = 0; k < depth; ++k) {
      float *to = backward.data() + size_t(k / 4) * gates() * 4 + k % 4;
      for (int r = 0; r < gates(); ++r) to[4 * r] = w[k * gates() + r];
    }
  }
};

struct Network {
  std::vector<Layer> layers;
  const float *output, *output_bias;
  int features, widest = 0, deepest = 0;
  int units = 0, blocks = 0;   // of all layers: units, and blocks of four rows backwards

  Network(const ffi::RemainingArgs &arguments, int count, bool transposed) {
    auto get = [&](int i) { return arguments.get<Buffer>(i).value(); };
    for (int l = 0; l < count; ++l) {
      layers.emplace_back(get(2 * l), get(2 * l + 1), transposed);
      widest = std::max(widest, layers[l].units);
      deepest = std::max(deepest, layers[l].depth);
      units += layers[l].units;
      blocks += rounded_up(layers[l].depth, 4) / 4;
    }
    output = get(2 * count).typed_data();
    output_bias = get(2 * count + 1).typed_data();
    features = layers[0].inputs;
  }
};

// The four gates of a unit before their activations.
INLINE Four preactivations(const Layer &layer, const Pair *inputs, int unit) {
  const float *w = layer.forward.data() + size_t(unit) * (1 + layer.depth) * 4;
  Four z = {both(w[0]), both(w[1]), both(w[2]), both(w[3])};
  for (int k = 0; k < layer.depth; ++k) add_products(z, w += 4, inputs[k]);
  return z;
}

// Of each unit 1 / σ(i), 1 / σ(f), 2 tanh(g) / (1 - tanh(g)) and 1 / σ(o). Products, exponentials
// and what is made of them are loops of their own: an exponential takes long to come, and in a loop
// the processor begins the next ones meanwhile. `ahead` asks for the rows of a unit, while products
// leave time for that: many requests at once would wait for each other.
template <typename Ahead>
INLINE void exponentials(const Layer &layer, const Pair *inputs, Four *found, const Ahead &ahead) {
  for (int u = 0; u < layer.units; ++u) {
    ahead(u);
    found[u] = preactivations(layer, inputs, u);
  }
  for (int u = 0; u < layer.units; ++u) {
    Four z = found[u];
    found[u] = {one_plus_exp_minus(z.p), one_plus_exp_minus(z.q), expm1_of_twice(z.r),
                one_plus_exp_minus(z.s)};
  }
}

}  // namespace l2ljax

#endif  // L2LJAX_NETWORK_H_
