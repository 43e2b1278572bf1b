// The coordinate LSTM and its transposed derivative on a CPU, as calls of XLA's foreign functions.
//
// A step of the network as XLA runs it is a dozen passes over arrays with a row for each gate of
// each unit. Here a tile of coordinates goes through all layers while it is in the cache: state is
// read once, gates stay near, and the new state is written once. Backwards a tile goes through all
// steps of a sequence: what a step needs of the others never leaves the processor. Its gates are
// those that the forward steps noted or, where they noted nothing, are computed again. Coordinates
// are last, so a vector holds neighbouring ones.
//
// `_cpu.py` has the order of arguments and results, what they are, and checks their shapes;
// `_build.py` compiles this.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "network.h"
#include "sums.h"
#include "threads.h"
#include "vectors.h"
#include "workspace.h"
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
// and their gradients have a part for each step, one after another; so have `notes`, a part for each
// tile, with the units of all layers in turn.
struct Arrays {
  std::int64_t n;
  int steps = 1;
  const float *x;
  std::vector<const float *> states, by_new;
  const float *by_y;
  std::vector<float *> new_states, by_states;
  float *y, *by_x;
  Kept *notes = nullptr;

  Rows<const float> in(const float *array, std::int64_t at) const { return {array + at, n}; }
  Rows<float> out(float *array, std::int64_t at) const { return {array + at, n}; }

  std::int64_t tiles() const { return (n + TILE - 1) / TILE; }

  Kept *note(const Network &net, std::int64_t step, std::int64_t at) const {
    return notes + (step * tiles() + at / TILE) * net.units;
  }

  // Takes a buffer for notes if those of so many steps fit.
  bool take_notes(const Network &net, std::int64_t steps, const float *numbers, size_t count) {
    notes = (Kept *)numbers;
    return steps >= 0 && size_t(steps * tiles()) * net.units * sizeof(Kept) <= count * sizeof(float);
  }
};

ffi::Error no_room() { return ffi::Error::InvalidArgument("notes have no room for these steps"); }

// A step, of which gates are kept if there is a `note`.
template <bool KEEPING>
void forward(const Network &net, const Arrays &arrays, std::int64_t at, int count,
             const Workspace &space, Kept *note) {
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
      if (KEEPING) expect_writing(note + u);
    });
    Kept nowhere;   // of all units, where nothing is kept
    auto kept = [&](int u) -> Kept & { return KEEPING ? note[u] : nowhere; };
    for (int u = 0; u < layer.units; ++u) {
      outputs[u] = keep_cell(space.found[u], load(cells[u], count), kept(u));
      store(new_cells[u], outputs[u], count);
    }
    for (int u = 0; u < layer.units; ++u) outputs[u] = expm1_of_twice(outputs[u]);
    for (int u = 0; u < layer.units; ++u) {
      outputs[u] = keep_output(space.found[u].s, outputs[u], kept(u));
      store(new_hidden[u], outputs[u], count);
    }
    if (KEEPING) note += layer.units;
  }
  Pair y = both(*net.output_bias);
  for (int u = 0; u < net.layers.back().units; ++u) add_product(y, net.output[u], step.top[u]);
  store(arrays.y + at, y, count);
}

// The inputs of a step that are no outputs of the network.
void load_x(const Network &net, const Arrays &arrays, int s, std::int64_t at, int count,
            const Step &step) {
  auto x = arrays.in(arrays.x + s * net.features * arrays.n, at);
  for (int f = 0; f < net.features; ++f) {
    expect(x[f]);
    step.inputs[0][f] = load_repeating(x[f], count);
  }
}

// The state before the first step.
void load_first(const Network &net, const Arrays &arrays, std::int64_t at, int count,
                const Workspace &space, const Step &step) {
  Kept *first = space.first;
  for (size_t l = 0; l < net.layers.size(); ++l) {
    const Layer &layer = net.layers[l];
    auto cells = arrays.in(arrays.states[2 * l], at);
    auto hidden = arrays.in(arrays.states[2 * l + 1], at);
    for (int u = 0; u < layer.units; ++u) {
      expect(cells[u]);
      expect(hidden[u]);
      (first++)->c = load_repeating(cells[u], count);
      step.inputs[l][layer.inputs + u] = load_repeating(hidden[u], count);
    }
  }
}

// All steps again, from the state before them, for what is kept of each.
void recompute(const Network &net, const Arrays &arrays, std::int64_t at, int count,
               const Workspace &space) {
  const Kept *before = space.first;
  Kept *kept = space.kept;
  load_first(net, arrays, at, count, space, space.steps[0]);
  for (int s = 0; s < arrays.steps; ++s) {
    const Step &step = space.steps[s % 2], &next = space.steps[1 - s % 2];
    load_x(net, arrays, s, at, count, step);
    for (size_t l = 0; l < net.layers.size(); ++l) {
      const Layer &layer = net.layers[l];
      Pair *outputs = l + 1 < net.layers.size() ? step.inputs[l + 1] : step.top;
      exponentials(layer, step.inputs[l], space.found, [](int) {});
      for (int u = 0; u < layer.units; ++u)
        outputs[u] = keep_cell(space.found[u], (before++)->c, kept[u]);
      for (int u = 0; u < layer.units; ++u) outputs[u] = expm1_of_twice(outputs[u]);
      for (int u = 0; u < layer.units; ++u) {
        outputs[u] = keep_output(space.found[u].s, outputs[u], *kept++);
        next.inputs[l][layer.inputs + u] = outputs[u];
      }
    }
    before = kept - net.units;
  }
}

// What a step needs besides, and the inputs of the next one, from what was kept of it.
void restore(const Network &net, const Kept *kept, const Step &step, const Step &next) {
  for (size_t l = 0; l < net.layers.size(); ++l) {
    const Layer &layer = net.layers[l];
    Pair *outputs = l + 1 < net.layers.size() ? step.inputs[l + 1] : step.top;
    for (int u = 0; u < layer.units; ++u) step.tanh[l][u] = expm1_of_twice(kept[u].c);
    for (int u = 0; u < layer.units; ++u, ++kept) {
      Pair e = step.tanh[l][u], t = e / (e + 2.0f);
      step.tanh[l][u] = t;
      outputs[u] = kept->o * t;
      next.inputs[l][layer.inputs + u] = outputs[u];
    }
  }
}

// Adds products of inputs and `by_gates` of the workspace, of all coordinates of a tile.
void add_products_of_gates(const Layer &layer, const Pair *inputs, const Workspace &space,
                           float *kernel, float *biases) {
  int width = rounded_up(layer.gates(), LANES);
  for (int r = 0; r < width; r += LANES) {
    Vector bias = *(const Unaligned *)(biases + r);
    for (int half = 0; half < 2; ++half) {
      Vector rows[LANES];
      for (int j = 0; j < LANES; ++j)
        rows[j] = half ? space.by_gates[r + j].b : space.by_gates[r + j].a;
      transpose(rows);
      for (int j = 0; j < LANES; ++j) {
        bias += rows[j];
        *(Unaligned *)(space.turned + (half * LANES + j) * width + r) = rows[j];
      }
    }
    *(Unaligned *)(biases + r) = bias;
  }
  // With eight sums all registers of the multipliers are busy, and four times two want least loads.
  int r = 0;
  for (; r + 2 * LANES <= width; r += 2 * LANES)
    for (int k = 0; k < layer.depth; k += 4)
      add_outer_four((const float *)(inputs + k), space.turned + r, width,
                     kernel + size_t(k) * width + r);
  for (; r < width; r += LANES)
    for (int k = 0; k < layer.depth; k += BLOCK)
      add_outer((const float *)(inputs + k), space.turned + r, width,
                kernel + size_t(k) * width + r);
}

// Takes gradients by the state after a step to those by the state before it, with what was kept of
// it and of the step before. `ahead` asks for some of what is wanted next.
template <typename Ahead>
void pull_back(const Network &net, const Step &step, const Kept *kept, const Kept *before,
               Pair by_y, const Workspace &space, Sums &sums, const Ahead &ahead) {
  Pair *below = space.below, *by_gates = space.by_gates;
  int layers = int(net.layers.size());
  float *by_output = sums[2 * layers];
  for (int u = 0; u < net.layers.back().units; ++u) {
    by_output[u] += sum(step.top[u] * by_y);
    below[u] = net.output[u] * by_y;
  }
  *sums[2 * layers + 1] += sum(by_y);
  kept += net.units, before += net.units;
  for (int l = layers - 1; l >= 0; --l) {
    const Layer &layer = net.layers[l];
    int units = layer.units, gates = layer.gates();
    Pair *by_cells = space.by_cells[l], *by_hidden = space.by_hidden[l];
    kept -= units, before -= units;
    for (int u = 0; u < units; ++u) {
      Kept k = kept[u];
      Pair t = step.tanh[l][u], dh = below[u] + by_hidden[u], by_o = dh * k.o;
      Pair dc = by_cells[u] + by_o * (1.0f - t * t), by_i = dc * k.i;
      by_cells[u] = dc * k.f;
      by_gates[u] = by_i * k.g * (1.0f - k.i);
      by_gates[units + u] = by_cells[u] * before[u].c * (1.0f - k.f);
      by_gates[2 * units + u] = by_i * (1.0f - k.g * k.g);
      by_gates[3 * units + u] = by_o * t * (1.0f - k.o);
    }
    const float *w = layer.backward.data();
    for (int k = 0; k < layer.depth; k += 4) {
      Four s{};
      for (int r = 0; r < gates; ++r, w += 4) add_products(s, w, by_gates[r]);
      below[k] = s.p, below[k + 1] = s.q, below[k + 2] = s.r, below[k + 3] = s.s;
      ahead();
    }
    std::copy_n(below + layer.inputs, units, by_hidden);
    add_products_of_gates(layer, step.inputs[l], space, sums[2 * l], sums[2 * l + 1]);
  }
  sums.after_tile();
}

void backward(const Network &net, const Arrays &arrays, std::int64_t at, int count,
              const Workspace &space, Sums &sums) {
  auto each_row = [&](auto &&work) {
    for (size_t l = 0; l < net.layers.size(); ++l)
      for (int u = 0; u < net.layers[l].units; ++u) {
        work(2 * l, u, space.by_cells[l][u]);
        work(2 * l + 1, u, space.by_hidden[l][u]);
      }
  };
  each_row([&](size_t state, int u, Pair &gradient) {
    auto by_new = arrays.in(arrays.by_new[state], at);
    expect(by_new[u]);
    gradient = load(by_new[u], count);
  });
  if (!arrays.notes) recompute(net, arrays, at, count, space);
  auto kept = [&](int s) {
    return arrays.notes ? arrays.note(net, s, at) : space.kept + size_t(s) * net.units;
  };
  // Notes are wanted two steps ahead, of the first two steps the last ones of the next tile.
  auto wanted = [&](int s) -> const Kept * {
    if (!arrays.notes || (s < 2 && at + TILE >= arrays.n)) return nullptr;
    return s < 2 ? arrays.note(net, std::max(0, arrays.steps + s - 2), at + TILE) : kept(s - 2);
  };
  int lines = net.units * int(sizeof(Kept)) / LINE / net.blocks + 1, last = arrays.steps - 1;
  if (last >= 0) restore(net, kept(last), space.steps[last % 2], space.steps[1 - last % 2]);
  for (int s = last; s >= 0; --s) {
    const Step &step = space.steps[s % 2], &other = space.steps[1 - s % 2];
    if (s > 0)
      restore(net, kept(s - 1), other, step);
    else
      load_first(net, arrays, at, count, space, step);
    load_x(net, arrays, s, at, count, step);
    const float *by_y = arrays.by_y + s * arrays.n + at;
    expect(by_y);
    auto line = (const char *)wanted(s);
    pull_back(net, step, kept(s), s > 0 ? kept(s - 1) : space.first, load(by_y, count), space, sums,
              [&] {
                for (int i = 0; line && i < lines; ++i, line += LINE) expect_line(line);
              });
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
  std::int32_t step = 0;
  if (int(arguments.size()) > 4 * layers + 3) {
    step = *arguments.get<ffi::Buffer<ffi::S32>>(4 * layers + 4).value().typed_data();
    auto notes = results.get<Buffer>(2 * layers + 1).value();
    if (!arrays.take_notes(net, step + 1, notes->typed_data(), notes->element_count()))
      return no_room();
  }
  Ranges ranges(arrays.n, TILES_OF_A_STEP);
  int others = helpers(pool, devices, ranges);
  std::vector<Workspace> spaces;
  for (int i = 0; i <= others; ++i) spaces.emplace_back(net, 0);
  for_each_tile(ranges, others, pool, [&](int worker, int, std::int64_t at, int count) {
    if (arrays.notes)
      forward<true>(net, arrays, at, count, spaces[worker], arrays.note(net, step, at));
    else
      forward<false>(net, arrays, at, count, spaces[worker], nullptr);
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
  if (int(arguments.size()) > 6 * layers + 4) {
    auto notes = argument(6 * layers + 4);
    if (!arrays.take_notes(net, arrays.steps, notes.typed_data(), notes.element_count()))
      return no_room();
  }
  Ranges ranges(arrays.n, sequence ? TILES_OF_A_SEQUENCE : TILES_OF_A_STEP);
  int others = helpers(pool, devices, ranges);
  std::vector<Workspace> spaces;
  for (int i = 0; i <= others; ++i) spaces.emplace_back(net, arrays.notes ? 0 : arrays.steps);
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

// Room for notes: they are written before they are read. Large ones are memory that the system gives
// anew for each call of XLA's program, page after page as they are written: fewer if they are huge.
// Where a system has none of these, or refuses, notes are as good.
ffi::Error Notes(ffi::RemainingArgs, ffi::RemainingRets results) {
#ifdef MADV_HUGEPAGE
  auto notes = results.get<Buffer>(0).value();
  auto start = std::uintptr_t(notes->untyped_data()), end = start + notes->size_bytes();
  std::uintptr_t page = sysconf(_SC_PAGESIZE), first = (start + page - 1) / page * page;
  if (first < end) madvise((void *)first, end - first, MADV_HUGEPAGE);
#endif
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(l2ljax_lstm_notes, Notes,
                              ffi::Ffi::Bind().RemainingArgs().RemainingRets());

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
