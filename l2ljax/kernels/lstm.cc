// The coordinate LSTM and its transposed derivative on a CPU, as calls of XLA's foreign functions.
//
// A step of the network as XLA runs it is a dozen passes over arrays with a row for each gate of
// each unit. Here a tile of coordinates goes through all layers while it is in the cache: state is
// read once, gates stay near (backwards they are computed again), and the new state is written once.
// Coordinates are last, so a vector holds neighbouring ones.
//
// `_cpu.py` has the order of arguments and results, and what they are; `_build.py` compiles this.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "threads.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::Buffer<ffi::F32>;
using namespace l2ljax;
using std::size_t;

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
    auto fill = [&](int row, const float *from) {
      for (int gate = 0; gate < 4; ++gate)
        for (int unit = 0; unit < units; ++unit)
          forward[(size_t(unit) * (1 + depth) + row) * 4 + gate] = from[gate * units + unit];
    };
    fill(0, b);
    for (int k = 0; k < depth; ++k) fill(1 + k, w + k * gates());
    if (!transposed) return;
    backward.resize(size_t(multiple(depth, 4)) * gates());
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

  Network(const ffi::RemainingArgs &arguments, int count, bool transposed) {
    auto get = [&](int i) { return arguments.get<Buffer>(i).value(); };
    for (int l = 0; l < count; ++l) {
      layers.emplace_back(get(2 * l), get(2 * l + 1), transposed);
      widest = std::max(widest, layers[l].units);
      deepest = std::max(deepest, layers[l].depth);
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

// The rows of some arrays [rows, n], from the first coordinate of a tile on.
template <typename Number>
struct Rows {
  Number *start;
  std::int64_t n;
  Number *operator[](int row) const { return start + row * n; }
};

// All that a call reads and writes. `states` are cell and hidden units of each layer in turn.
struct Arrays {
  std::int64_t n;
  const float *x;
  std::vector<const float *> states, by_new;
  const float *by_y;
  std::vector<float *> new_states, by_states;
  float *y, *by_x;

  Rows<const float> in(const float *array, std::int64_t at) const { return {array + at, n}; }
  Rows<float> out(float *array, std::int64_t at) const { return {array + at, n}; }
};

constexpr int BLOCK = 8;

// Gates, and tanh of the new cell.
struct Kept {
  Pair i, f, g, o, t;
};

// What one worker computes a tile in: all of it lies together, and stays in the cache.
class Workspace {
  std::unique_ptr<char[]> memory;

 public:
  std::vector<Pair *> inputs;   // of each layer [depth]
  std::vector<Kept *> kept;     // of each layer [units]
  Pair *top;                    // outputs of the last layer
  Pair *below;                  // gradients by the inputs of a layer
  Four *found;                  // [units]: exponentials
  Pair *by_gates;               // [gates], in the same place
  float *turned;                // [TILE][gates], the same with coordinates first

  explicit Workspace(const Network &net) {
    size_t pairs = 5 * size_t(net.widest) + multiple(net.deepest, 4);
    for (const Layer &layer : net.layers) pairs += multiple(layer.depth, BLOCK) + 5 * layer.units;
    size_t size = sizeof(Pair) * pairs + sizeof(float) * TILE * multiple(4 * net.widest, LANES);
    memory.reset(new char[size + sizeof(Vector)]);
    auto address = reinterpret_cast<std::uintptr_t>(memory.get()) + sizeof(Vector) - 1;
    Pair *free = (Pair *)(address / sizeof(Vector) * sizeof(Vector));
    auto take = [&](size_t pairs) { return std::exchange(free, free + pairs); };
    for (const Layer &layer : net.layers) {
      inputs.push_back(take(multiple(layer.depth, BLOCK)));
      kept.push_back((Kept *)take(5 * layer.units));
      std::fill_n(inputs.back() + layer.depth, multiple(layer.depth, BLOCK) - layer.depth, Pair{});
    }
    top = take(net.widest);
    below = take(multiple(net.deepest, 4));
    by_gates = take(4 * net.widest);
    found = (Four *)by_gates;
    turned = (float *)free;
  }
};

void forward(const Network &net, const Arrays &arrays, std::int64_t at, int count,
             const Workspace &space) {
  auto x = arrays.in(arrays.x, at);
  for (int f = 0; f < net.features; ++f) space.inputs[0][f] = load(x[f], count);
  for (size_t l = 0; l < net.layers.size(); ++l) {
    const Layer &layer = net.layers[l];
    auto cells = arrays.in(arrays.states[2 * l], at);
    auto hidden = arrays.in(arrays.states[2 * l + 1], at);
    auto new_cells = arrays.out(arrays.new_states[2 * l], at);
    auto new_hidden = arrays.out(arrays.new_states[2 * l + 1], at);
    Pair *inputs = space.inputs[l];
    Pair *outputs = l + 1 < net.layers.size() ? space.inputs[l + 1] : space.top;
    for (int u = 0; u < layer.units; ++u) inputs[layer.inputs + u] = load(hidden[u], count);
    exponentials(layer, inputs, space.found, [&](int u) {
      expect(cells[u]);
      expect(hidden[u]);
    });
    for (int u = 0; u < layer.units; ++u) {
      // σ(f) c + σ(i) tanh(g), and σ(o) tanh(c), with one division for both factors.
      auto [i, f, g, o] = space.found[u];
      Pair cell = load(cells[u], count) / f + g / (i * (g + 2.0f));
      Pair c = expm1_of_twice(cell);
      outputs[u] = c / (o * (c + 2.0f));
      store(new_cells[u], cell, count);
      store(new_hidden[u], outputs[u], count);
    }
  }
  Pair y = both(*net.output_bias);
  for (int u = 0; u < net.layers.back().units; ++u) add_product(y, net.output[u], space.top[u]);
  store(arrays.y + at, y, count);
}

// Gradients by the weights, summed over a range of coordinates. Kernels have rows and columns that do
// not exist, up to whole blocks of `add_outer`.
struct Sums {
  std::vector<std::vector<float>> kernels, biases;
  std::vector<float> output;
  float output_bias = 0;

  explicit Sums(const Network &net) : output(net.layers.back().units) {
    for (const Layer &layer : net.layers) {
      int width = multiple(layer.gates(), LANES);
      kernels.emplace_back(size_t(multiple(layer.depth, BLOCK)) * width);
      biases.emplace_back(width);
    }
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

// sums[k][r] += Σ_b rows[k][b] columns[b][r] of BLOCK k, LANES r and all b of a tile.
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

void backward(const Network &net, const Arrays &arrays, std::int64_t at, int count,
              const Workspace &space, Sums &sums) {
  int layers = int(net.layers.size());
  const auto &inputs = space.inputs;
  const auto &kept = space.kept;
  Pair *top = space.top, *below = space.below, *by_gates = space.by_gates;

  // The step again.
  auto x = arrays.in(arrays.x, at);
  for (int f = 0; f < net.features; ++f) inputs[0][f] = load(x[f], count);
  for (int l = 0; l < layers; ++l) {
    const Layer &layer = net.layers[l];
    auto cells = arrays.in(arrays.states[2 * l], at);
    auto hidden = arrays.in(arrays.states[2 * l + 1], at);
    for (int u = 0; u < layer.units; ++u) inputs[l][layer.inputs + u] = load(hidden[u], count);
    Pair *outputs = l + 1 < layers ? inputs[l + 1] : top;
    auto by_new_cells = arrays.in(arrays.by_new[2 * l], at);
    auto by_new_hidden = arrays.in(arrays.by_new[2 * l + 1], at);
    exponentials(layer, inputs[l], space.found, [&](int u) {
      expect(cells[u]);
      expect(hidden[u]);
      expect(by_new_cells[u]);
      expect(by_new_hidden[u]);
    });
    for (int u = 0; u < layer.units; ++u) {
      auto [i, f, g, o] = space.found[u];
      Kept k;
      Pair r = 1.0f / (i * (g + 2.0f));
      k.i = r * (g + 2.0f);
      k.g = r * g * i;
      k.f = 1.0f / f;
      Pair t = expm1_of_twice(k.f * load(cells[u], count) + k.i * k.g);
      r = 1.0f / (o * (t + 2.0f));
      k.o = r * (t + 2.0f);
      k.t = r * t * o;
      kept[l][u] = k;
      outputs[u] = k.o * k.t;
    }
  }

  Pair by_y = load(arrays.by_y + at, count);
  sums.output_bias += sum(by_y);
  for (int u = 0; u < net.layers.back().units; ++u) {
    sums.output[u] += sum(top[u] * by_y);
    below[u] = net.output[u] * by_y;
  }
  for (int l = layers - 1; l >= 0; --l) {
    const Layer &layer = net.layers[l];
    int units = layer.units, gates = layer.gates(), width = multiple(gates, LANES);
    auto cells = arrays.in(arrays.states[2 * l], at);
    auto by_new_cells = arrays.in(arrays.by_new[2 * l], at);
    auto by_new_hidden = arrays.in(arrays.by_new[2 * l + 1], at);
    auto by_cells = arrays.out(arrays.by_states[2 * l], at);
    auto by_hidden = arrays.out(arrays.by_states[2 * l + 1], at);
    for (int u = 0; u < units; ++u) {
      Kept k = kept[l][u];
      Pair dh = below[u] + load(by_new_hidden[u], count);
      Pair dc = load(by_new_cells[u], count) + dh * k.o * (1.0f - k.t * k.t);
      by_gates[u] = dc * k.g * k.i * (1.0f - k.i);
      by_gates[units + u] = dc * load(cells[u], count) * k.f * (1.0f - k.f);
      by_gates[2 * units + u] = dc * k.i * (1.0f - k.g * k.g);
      by_gates[3 * units + u] = dh * k.t * k.o * (1.0f - k.o);
      store(by_cells[u], dc * k.f, count);
    }

    const float *w = layer.backward.data();
    for (int k = 0; k < layer.depth; k += 4) {
      Four s{};
      for (int r = 0; r < gates; ++r, w += 4) add_products(s, w, by_gates[r]);
      below[k] = s.p, below[k + 1] = s.q, below[k + 2] = s.r, below[k + 3] = s.s;
    }
    for (int u = 0; u < units; ++u) store(by_hidden[u], below[layer.inputs + u], count);

    for (int half = 0; half < 2; ++half)
      for (int r = 0; r < width; r += LANES) {
        Vector rows[LANES];
        for (int j = 0; j < LANES; ++j) {
          const Pair &d = by_gates[std::min(r + j, gates - 1)];
          rows[j] = half ? d.b : d.a;
        }
        transpose(rows);
        for (int j = 0; j < LANES; ++j)
          *(Unaligned *)(space.turned + (half * LANES + j) * width + r) = rows[j];
      }
    for (int r = 0; r < width; r += LANES) {
      Unaligned &bias = *(Unaligned *)(sums.biases[l].data() + r);
      for (int b = 0; b < TILE; ++b) bias += *(const Unaligned *)(space.turned + b * width + r);
      for (int k = 0; k < layer.depth; k += BLOCK)
        add_outer((const float *)(inputs[l] + k), space.turned + r, width,
                  sums.kernels[l].data() + size_t(k) * width + r);
    }
  }
  auto by_x = arrays.out(arrays.by_x, at);
  for (int f = 0; f < net.features; ++f) store(by_x[f], below[f], count);
}

ffi::Error Forward(ffi::ThreadPool pool, std::int64_t devices, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  int layers = (int(arguments.size()) - 3) / 4, weights = 2 * layers + 2;
  Network net(arguments, layers, false);
  Arrays arrays;
  arrays.x = arguments.get<Buffer>(weights).value().typed_data();
  for (int i = 0; i < 2 * layers; ++i) {
    arrays.states.push_back(arguments.get<Buffer>(weights + 1 + i).value().typed_data());
    arrays.new_states.push_back(results.get<Buffer>(i).value()->typed_data());
  }
  auto y = results.get<Buffer>(2 * layers).value();
  arrays.y = y->typed_data();
  arrays.n = std::int64_t(y->element_count());
  Ranges ranges(arrays.n);
  int others = helpers(pool, devices, ranges);
  std::vector<Workspace> spaces;
  for (int i = 0; i <= others; ++i) spaces.emplace_back(net);
  for_each_tile(ranges, others, pool, [&](int worker, int, std::int64_t at, int count) {
    forward(net, arrays, at, count, spaces[worker]);
  });
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, std::int64_t devices, ffi::RemainingArgs arguments,
                    ffi::RemainingRets results) {
  int layers = (int(arguments.size()) - 4) / 6, weights = 2 * layers + 2;
  auto argument = [&](int i) { return arguments.get<Buffer>(i).value(); };
  auto result = [&](int i) { return results.get<Buffer>(i).value()->typed_data(); };
  Network net(arguments, layers, true);
  Arrays arrays;
  arrays.x = argument(weights).typed_data();
  arrays.by_x = result(weights);
  for (int i = 1; i <= 2 * layers; ++i) {
    arrays.states.push_back(argument(weights + i).typed_data());
    arrays.by_new.push_back(argument(weights + 2 * layers + i).typed_data());
    arrays.by_states.push_back(result(weights + i));
  }
  auto by_y = argument(weights + 4 * layers + 1);
  arrays.by_y = by_y.typed_data();
  arrays.n = std::int64_t(by_y.element_count());
  Ranges ranges(arrays.n);
  int others = helpers(pool, devices, ranges);
  std::vector<Workspace> spaces;
  for (int i = 0; i <= others; ++i) spaces.emplace_back(net);
  std::vector<Sums> sums(ranges.count(), Sums(net));
  for_each_tile(ranges, others, pool, [&](int worker, int range, std::int64_t at, int count) {
    backward(net, arrays, at, count, spaces[worker], sums[range]);
  });

  // `rows` of `width` numbers, of which `columns` exist.
  auto total = [&](float *to, int rows, int columns, int width, auto &&part) {
    for (int row = 0; row < rows; ++row) {
      std::fill_n(to + row * columns, columns, 0.0f);
      for (const Sums &some : sums)
        for (int column = 0; column < columns; ++column)
          to[row * columns + column] += part(some)[row * width + column];
    }
  };
  for (int l = 0; l < layers; ++l) {
    int gates = net.layers[l].gates(), width = multiple(gates, LANES);
    total(result(2 * l), net.layers[l].depth, gates, width,
          [l](const Sums &some) { return some.kernels[l].data(); });
    total(result(2 * l + 1), 1, gates, width,
          [l](const Sums &some) { return some.biases[l].data(); });
  }
  int units = net.layers.back().units;
  total(result(2 * layers), 1, units, units, [](const Sums &some) { return some.output.data(); });
  total(result(2 * layers + 1), 1, 1, 1, [](const Sums &some) { return &some.output_bias; });
  return ffi::Error::Success();
}

}  // namespace

#define L2LJAX_HANDLER(name, function)                                            \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                                   \
                                ffi::Ffi::Bind()                                  \
                                    .Ctx<ffi::ThreadPool>()                       \
                                    .Attr<std::int64_t>("devices")                \
                                    .RemainingArgs()                              \
                                    .RemainingRets())

L2LJAX_HANDLER(l2ljax_lstm_forward, Forward);
L2LJAX_HANDLER(l2ljax_lstm_backward, Backward);

// Whether this processor has the instructions that this was compiled for.
extern "C" int l2ljax_runs_here() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma");
#else
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
#endif
}
