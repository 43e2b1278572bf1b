// What is kept of a tile, and what one worker computes it in.

#ifndef L2LJAX_WORKSPACE_H_
#define L2LJAX_WORKSPACE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "network.h"
#include "sums.h"
#include "vectors.h"

namespace l2ljax {

// Of a unit at a step: its gates, and the new cell.
struct Kept {
  Pair i, f, g, o, c;
};

// What a step needs besides what is kept of it, of each layer.
struct Step {
  std::vector<Pair *> inputs;   // [depth]
  std::vector<Pair *> tanh;     // [units], of the new cells
  Pair *top;                    // outputs of the last layer
};

// What one worker computes a tile in: all of it lies together, and stays in the cache.
class Workspace {
  std::unique_ptr<char[]> memory;

 public:
  Step steps[2];                               // this one, and the one before or after it
  Kept *kept;                                  // [steps][units], where nothing was noted
  Kept *first;                                 // [units], of which only the cells are used
  std::vector<Pair *> by_cells, by_hidden;     // of each layer [units]
  Pair *below;                                 // gradients by the inputs of a layer
  Four *found;                                 // [units]: exponentials
  Pair *by_gates;                              // [gates], in the same place
  float *turned;                               // [TILE][gates], the same with coordinates first

  Workspace(const Network &net, int kept_steps) {
    char *start = nullptr;
    // Twice: to count, and to take what was counted.
    for (bool counting : {true, false}) {
      size_t size = 0;
      auto take = [&](auto *&to, size_t count) {
        to = (std::remove_reference_t<decltype(to)>)(start + size);
        size += count * sizeof(*to);
      };
      auto take_each = [&](std::vector<Pair *> &to, auto &&count) {
        to.resize(net.layers.size());
        for (size_t l = 0; l < to.size(); ++l) take(to[l], count(net.layers[l]));
      };
      auto units = [](const Layer &layer) { return layer.units; };
      take_each(by_cells, units);
      take_each(by_hidden, units);
      take(below, rounded_up(net.deepest, 4));
      take(by_gates, rounded_up(4 * net.widest, LANES));
      for (Step &step : steps) {
        take_each(step.inputs, [](const Layer &layer) { return rounded_up(layer.depth, BLOCK); });
        take_each(step.tanh, units);
        take(step.top, net.widest);
      }
      take(turned, TILE * rounded_up(4 * net.widest, LANES));
      take(first, net.units);
      take(kept, size_t(kept_steps) * net.units);
      found = (Four *)by_gates;
      if (!counting) break;
      memory.reset(new char[size + sizeof(Vector)]);
      auto address = reinterpret_cast<std::uintptr_t>(memory.get()) + sizeof(Vector) - 1;
      start = (char *)(address / sizeof(Vector) * sizeof(Vector));
    }
    // Rows that do not exist are multiplied as well.
    std::fill_n(by_gates, rounded_up(4 * net.widest, LANES), Pair{});
    for (Step &step : steps)
      for (size_t l = 0; l < net.layers.size(); ++l)
        std::fill_n(step.inputs[l], rounded_up(net.layers[l].depth, BLOCK), Pair{});
  }
};

// The new cell of a unit, from what `exponentials` found and the cell before the step, with what is
// kept of it.
INLINE Pair keep_cell(const Four &found, Pair cell, Kept &kept) {
  auto [i, f, g, o] = found;
  // One division for two gates.
  Pair r = 1.0f / (i * (g + 2.0f));
  kept.i = r * (g + 2.0f);
  kept.g = r * (g * i);
  kept.f = 1.0f / f;
  return kept.c = kept.f * cell + kept.i * kept.g;
}

// The output of a unit, with its gate, which is kept: from what `exponentials` found of that, and
// exp(2 c) - 1 of the new cell.
INLINE Pair keep_output(Pair o, Pair e, Kept &kept) {
  Pair r = 1.0f / (o * (e + 2.0f));
  kept.o = r * (e + 2.0f);
  return r * e;
}

}  // namespace l2ljax

#endif  // L2LJAX_WORKSPACE_H_
