// The coordinate LSTM and its transposed derivative on a CPU, as calls of XLA's foreign functions.
//
// A step of the network as XLA runs it is a dozen passes over arrays with a row for each gate of
// each unit. Here a tile of coordinates goes through all layers while it is in the cache: state is
// read once, gates stay near (backwards they are computed again), and the new state is written once.
// Backwards a tile goes through all steps of a sequence, forwards and back: what a step needs of the
// others never leaves the processor. Coordinates are last, so a vector holds neighbouring ones.
//
// `_cpu.py` has the order of arguments and results, what they are, and checks their shapes;
// `_build.py` compiles this.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "network.h"
#include "sums.h"
#include "threads.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace {

using namespace l2ljax;

// The rows of some arrays [rows, n], from the first coordinate of a tile on.
template <typename Number>
struct Rows {
  Number *start;
  std::int64_t n;
  Number *operator[](int row) const { return start + row * n; }
};

// All that a call reads and writes. `states` are cell and hidden units of each layer in turn; x, y
// and their gradients have a part for each step, one after another.
struct Arrays {
  std::int64_t n;
  int steps = 1;
  const float *x;
  std::vector<const float *> states, by_new;
  const float *by_y;
  std::vector<float *> new_states, by_states;
  float *y, *by_x;

  Rows<const float> in(const float *array, std::int64_t at) const { return {array + at, n}; }
  Rows<float> out(float *array, std::int64_t at) const { return {array + at, n}; }
};

// Gates, and tanh of the new cell.
struct Kept {
  Pair i, f, g, o, t;
};

// What gradients need of a step.
struct Step {
  std::vector<Pair *> inputs;   // of each layer [depth]
  std::vector<Pair *> cells;    // of each layer [units], before the step
  std::vector<Kept *> kept;     // of each layer [units]
  Pair *top;                    // outputs of the last layer
};

// What one worker computes a tile in: all of it lies together, and stays in the cache.
class Workspace {
  std::unique_ptr<char[]> memory;

 public:
  std::vector<Step> steps;                     // and one more, for the state after them
  std::vector<Pair *> by_cells, by_hidden;     // of each layer [units]
  Pair *below;                                 // gradients by the inputs of a layer
  Four *found;                                 // [units]: exponentials
  Pair *by_gates;                              // [gates], in the same place
  float *turned;                               // [TILE][gates], the same with coordinates first

  Workspace(const Network &net, int count) : steps(count + 1) {
    size_t each = net.widest, pairs = 4 * size_t(net.widest) + rounded_up(net.deepest, 4);
    for (const Layer &layer : net.layers) {
      each += rounded_up(layer.depth, BLOCK) + 6 * layer.units;
      pairs += 2 * layer.units;
    }
    size_t size = sizeof(Pair) * (pairs + each * steps.size()) +
                  sizeof(float) * TILE * rounded_up(4 * net.widest, LANES);
    memory.reset(new char[size + sizeof(Vector)]);
    auto address = reinterpret_cast<std::uintptr_t>(memory.get()) + sizeof(Vector) - 1;
    Pair *free = (Pair *)(address / sizeof(Vector) * sizeof(Vector));
    auto take = [&](size_t pairs) { return std::exchange(free, free + pairs); };
    for (const Layer &layer : net.layers) {
      by_cells.push_back(take(layer.units));
      by_hidden.push_back(take(layer.units));
    }
    below = take(rounded_up(net.deepest, 4));
    by_gates = take(4 * net.widest);
    found = (Four *)by_gates;
    for (Step &step : steps) {
      for (const Layer &layer : net.layers) {
        int rows = rounded_up(layer.depth, BLOCK);
        step.inputs.push_back(take(rows));
        step.cells.push_back(take(layer.units));
        step.kept.push_back((Kept *)take(5 * layer.units));
        std::fill_n(step.inputs.back() + layer.depth, rows - layer.depth, Pair{});
      }
      step.top = take(net.widest);
    }
    turned = (float *)free;
  }
};

void forward(const Network &net, const Arrays &arrays, std::int64_t at, int count,
             const Workspace &space) {
  const Step &step = space.steps[0];
  auto x = arrays.in(arrays.x, at);
  for (int f = 0; f < net.features; ++f) step.inputs[0][f] = load_repeating(x[f], count);
  for (size_t l = 0; l < net.layers.size(); ++l) {
    const Layer &layer = net.layers[l];
    auto cells = arrays.in(arrays.states[2 * l], at);
    auto hidden = arrays.in(arrays.states[2 * l + 1], at);
    auto new_cells = arrays.out(arrays.new_states[2 * l], at);
    auto new_hidden = arrays.out(arrays.new_states[2 * l + 1], at);
    Pair *inputs = step.inputs[l];
    Pair *outputs = l + 1 < net.layers.size() ? step.inputs[l + 1] : step.top;
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
  for (int u = 0; u < net.layers.back().units; ++u) add_product(y, net.output[u], step.top[u]);
  store(arrays.y + at, y, count);
}

// The steps again, from the state before them.
void recompute(const Network &net, const Arrays &arrays, std::int64_t at, int count,
               const Workspace &space) {
  int layers = int(net.layers.size());
  for (int l = 0; l < layers; ++l) {
    const Layer &layer = net.layers[l];
    auto cells = arrays.in(arrays.states[2 * l], at);
    auto hidden = arrays.in(arrays.states[2 * l + 1], at);
    for (int u = 0; u < layer.units; ++u) {
      space.steps[0].cells[l][u] = load_repeating(cells[u], count);
      space.steps[0].inputs[l][layer.inputs + u] = load_repeating(hidden[u], count);
    }
  }
  for (int s = 0; s < arrays.steps; ++s) {
    const Step &step = space.steps[s], &next = space.steps[s + 1];
    auto x = arrays.in(arrays.x + s * net.features * arrays.n, at);
    for (int f = 0; f < net.features; ++f) {
      expect(x[f]);
      step.inputs[0][f] = load_repeating(x[f], count);
    }
    expect(arrays.by_y + s * arrays.n + at);
    for (int l = 0; l < layers; ++l) {
      const Layer &layer = net.layers[l];
      exponentials(layer, step.inputs[l], space.found, [&](int u) {
        if (s > 0) return;
        expect(arrays.in(arrays.states[2 * l], at)[u]);
        expect(arrays.in(arrays.states[2 * l + 1], at)[u]);
        expect(arrays.in(arrays.by_new[2 * l], at)[u]);
        expect(arrays.in(arrays.by_new[2 * l + 1], at)[u]);
      });
      Pair *outputs = l + 1 < layers ? step.inputs[l + 1] : step.top;
      for (int u = 0; u < layer.units; ++u) {
        auto [i, f, g, o] = space.found[u];
        Kept k;
        Pair r = 1.0f / (i * (g + 2.0f));
        k.i = r * (g + 2.0f);
        k.g = r * g * i;
        k.f = 1.0f / f;
        Pair cell = k.f * step.cells[l][u] + k.i * k.g;
        Pair t = expm1_of_twice(cell);
        r = 1.0f / (o * (t + 2.0f));
        k.o = r * (t + 2.0f);
        k.t = r * t * o;
        step.kept[l][u] = k;
        outputs[u] = k.o * k.t;
        next.cells[l][u] = cell;
        next.inputs[l][layer.inputs + u] = outputs[u];
      }
    }
  }
}

// Adds products of inputs and `by_gates` of the workspace, of all coordinates of a tile.
void add_products_of_gates(const Layer &layer, const Pair *inputs, const Workspace &space,
                           float *kernel, float *biases) {
  int gates = layer.gates(), width = rounded_up(gates, LANES);
  for (int half = 0; half < 2; ++half)
    for (int r = 0; r < width; r += LANES) {
      Vector rows[LANES];
      for (int j = 0; j < LANES; ++j) {
        const Pair &d = space.by_gates[std::min(r + j, gates - 1)];
        rows[j] = half ? d.b : d.a;
      }
      transpose(rows);
      for (int j = 0; j < LANES; ++j)
        *(Unaligned *)(space.turned + (half * LANES + j) * width + r) = rows[j];
    }
  for (int r = 0; r < width; r += LANES) {
    Unaligned &bias = *(Unaligned *)(biases + r);
    for (int b = 0; b < TILE; ++b) bias += *(const Unaligned *)(space.turned + b * width + r);
    for (int k = 0; k < layer.depth; k += BLOCK)
      add_outer((const float *)(inputs + k), space.turned + r, width,
                kernel + size_t(k) * width + r);
  }
}

// Takes gradients by the state after a step to those by the state before it.
void pull_back(const Network &net, const Step &step, Pair by_y, const Workspace &space,
               Sums &sums) {
  Pair *below = space.below, *by_gates = space.by_gates;
  int layers = int(net.layers.size());
  float *by_output = sums[2 * layers];
  for (int u = 0; u < net.layers.back().units; ++u) {
    by_output[u] += sum(step.top[u] * by_y);
    below[u] = net.output[u] * by_y;
  }
  *sums[2 * layers + 1] += sum(by_y);
  for (int l = layers - 1; l >= 0; --l) {
    const Layer &layer = net.layers[l];
    int units = layer.units, gates = layer.gates();
    Pair *by_cells = space.by_cells[l], *by_hidden = space.by_hidden[l];
    for (int u = 0; u < units; ++u) {
      Kept k = step.kept[l][u];
      Pair dh = below[u] + by_hidden[u];
      Pair dc = by_cells[u] + dh * k.o * (1.0f - k.t * k.t);
      by_gates[u] = dc * k.g * k.i * (1.0f - k.i);
      by_gates[units + u] = dc * step.cells[l][u] * k.f * (1.0f - k.f);
      by_gates[2 * units + u] = dc * k.i * (1.0f - k.g * k.g);
      by_gates[3 * units + u] = dh * k.t * k.o * (1.0f - k.o);
      by_cells[u] = dc * k.f;
    }
    const float *w = layer.backward.data();
    for (int k = 0; k < layer.depth; k += 4) {
      Four s{};
      for (int r = 0; r < gates; ++r, w += 4) add_products(s, w, by_gates[r]);
      below[k] = s.p, below[k + 1] = s.q, below[k + 2] = s.r, below[k + 3] = s.s;
    }
    std::copy_n(below + layer.inputs, units, by_hidden);
    add_products_of_gates(layer, step.inputs[l], space, sums[2 * l], sums[2 * l + 1]);
  }
  sums.after_tile();
}

void backward(const Network &net, const Arrays &arrays, std::int64_t at, int count,
              const Workspace &space, Sums &sums) {
  recompute(net, arrays, at, count, space);
  auto each_row = [&](auto &&work) {
    for (size_t l = 0; l < net.layers.size(); ++l)
      for (int u = 0; u < net.layers[l].units; ++u) {
        work(2 * l, u, space.by_cells[l][u]);
        work(2 * l + 1, u, space.by_hidden[l][u]);
      }
  };
  each_row([&](size_t state, int u, Pair &gradient) {
    gradient = load(arrays.in(arrays.by_new[state], at)[u], count);
  });
  for (int s = arrays.steps - 1; s >= 0; --s) {
    Pair by_y = load(arrays.by_y + s * arrays.n + at, count);
    pull_back(net, space.steps[s], by_y, space, sums);
    auto by_x = arrays.out(arrays.by_x + s * net.features * arrays.n, at);
    for (int f = 0; f < net.features; ++f) store(by_x[f], space.below[f], count);
  }
  each_row([&](size_t state, int u, Pair &gradient) {
    store(arrays.out(arrays.by_states[state], at)[u], gradient, count);
  });
}

// The least that is worth a thread's while.
constexpr int TILES_OF_A_STEP = 8, TILES_OF_A_SEQUENCE = 2;

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
  Ranges ranges(arrays.n, TILES_OF_A_STEP);
  int others = helpers(pool, devices, ranges);
  std::vector<Workspace> spaces;
  for (int i = 0; i <= others; ++i) spaces.emplace_back(net, 0);
  for_each_tile(ranges, others, pool, [&](int worker, int, std::int64_t at, int count) {
    forward(net, arrays, at, count, spaces[worker]);
  });
  return ffi::Error::Success();
}

// The transposed derivative of a step, or of a sequence of them.
ffi::Error run_backward(bool sequence, ffi::ThreadPool pool, std::int64_t devices,
                        ffi::RemainingArgs arguments, ffi::RemainingRets results) {
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
  if (sequence) arrays.steps = int(by_y.dimensions()[0]);
  arrays.n = std::int64_t(argument(weights + 1).element_count()) / net.layers[0].units;
  Ranges ranges(arrays.n, sequence ? TILES_OF_A_SEQUENCE : TILES_OF_A_STEP);
  int others = helpers(pool, devices, ranges);
  std::vector<Workspace> spaces;
  for (int i = 0; i <= others; ++i) spaces.emplace_back(net, arrays.steps);
  std::vector<Sums> sums(ranges.count(), Sums(net));
  for_each_tile(ranges, others, pool, [&](int worker, int range, std::int64_t at, int count) {
    backward(net, arrays, at, count, spaces[worker], sums[range]);
  });

  for (Sums &some : sums) some.finish();

  // Of `rows` of `width` numbers the `columns` that exist.
  auto total = [&](int weight, int rows, int columns, int width) {
    float *to = result(weight);
    std::fill_n(to, size_t(rows) * columns, 0.0f);
    for (const Sums &some : sums)
      for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column)
          to[row * columns + column] += some.total(weight)[row * width + column];
  };
  for (int l = 0; l < layers; ++l) {
    int gates = net.layers[l].gates(), width = rounded_up(gates, LANES);
    total(2 * l, net.layers[l].depth, gates, width);
    total(2 * l + 1, 1, gates, width);
  }
  total(2 * layers, 1, net.layers.back().units, 0);
  total(2 * layers + 1, 1, 1, 0);
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, std::int64_t devices, ffi::RemainingArgs arguments,
                    ffi::RemainingRets results) {
  return run_backward(false, pool, devices, arguments, results);
}

ffi::Error SequenceBackward(ffi::ThreadPool pool, std::int64_t devices,
                            ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return run_backward(true, pool, devices, arguments, results);
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
L2LJAX_HANDLER(l2ljax_lstm_sequence_backward, SequenceBackward);

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
