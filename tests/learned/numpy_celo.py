"""Celo and Celo-Adam in NumPy and double precision, from the papers' formulas alone.

Nothing of l2ljax is in it. Weights are in the form of the published checkpoints: gates in the order
i, g, f, o, the first layer of the coordinates' network in fourteen groups of rows.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Schedule:
    """The factor of a step's length from the loss and the part of the run that is over."""

    def __init__(self, weights, num_steps):
        self.w = {
            name.removeprefix("scheduler."): np.float64(value) for name, value in weights.items()
        }
        self.num_steps, self.t = num_steps, 0
        self.decays = np.exp(-1 / np.logspace(1, np.log10(num_steps), 10))
        self.means, self.lowest = np.zeros(10), np.full(10, 1e12)
        self.h, self.c = self.w["initial_hidden"][0], self.w["initial_cell"][0]

    def __call__(self, loss):
        bias = 1 - self.decays ** (self.t + 1)
        if self.t > 0:
            loss = min(loss, 2 * abs((self.means / bias).max()))
        self.means = self.decays * self.means + (1 - self.decays) * loss
        corrected = self.means / bias
        self.lowest = np.minimum(self.lowest, corrected)
        trend = np.zeros(9)
        if self.t >= 2:
            for j in range(9):
                below = max(1e-8, corrected[j + 1] - self.lowest[j])
                trend[j] = np.clip((corrected[j] - self.lowest[j]) / below - 1, -1, 1)
        marks = np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1])
        x = np.concatenate([np.tanh(10 * (self.t / self.num_steps - marks)), trend])
        first = np.maximum(0, x @ self.w["linear_1.w"] + self.w["linear_1.b"])
        x = x @ self.w["linear_2.w"] + self.w["linear_2.b"] + first
        gates = np.concatenate([x, self.h]) @ self.w["rnn.linear.w"] + self.w["rnn.linear.b"]
        i, g, f, o = gates.reshape(4, 64)
        self.c = sigmoid(f + 1) * self.c + sigmoid(i) * np.tanh(g)
        self.h = sigmoid(o) * np.tanh(self.c)
        self.t += 1
        logarithm = self.h @ self.w["step_size.w"][:, 0] + self.w["step_size.b"][0]
        return 0.1 * np.exp(logarithm)


BETAS = (0.9, 0.99, 0.999)


class Tensor:
    """The averages of one tensor and its direction."""

    def __init__(self, weights, shape):
        self.weights = {name: np.float64(value) for name, value in weights.items()}
        self.m = [np.zeros(shape) for _ in BETAS]
        self.v = np.zeros(shape)
        self.order = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))
        self.rows, self.columns = [0.0] * 3, [0.0] * 3

    def move(self, p, g):
        """What is subtracted at a factor of one."""
        g = np.clip(g, -1000, 1000)
        square = g * g + 1e-30
        self.m = [b * m + (1 - b) * g for b, m in zip(BETAS, self.m, strict=True)]
        self.v = 0.999 * self.v + 0.001 * g * g
        matrix = p.ndim >= 2
        if matrix:
            largest, second = self.order[-1], self.order[-2]
            by_row, by_column = (square.mean(axis, keepdims=True) for axis in (largest, second))
        else:
            by_row = by_column = square
        self.rows = [b * r + (1 - b) * by_row for b, r in zip(BETAS, self.rows, strict=True)]
        self.columns = [
            b * c + (1 - b) * by_column for b, c in zip(BETAS, self.columns, strict=True)
        ]

        def power(x):
            return 1 / np.sqrt(np.maximum(x, 1e-9))

        if matrix:
            u = [
                power(r / (r.mean(second, keepdims=True) + 1e-9)) * power(c)
                for r, c in zip(self.rows, self.columns, strict=True)
            ]
            last = [m * factor for m, factor in zip(self.m, u, strict=True)]
        else:
            u = [power(f + 1e-9) for f in self.rows]
            last = [m / np.sqrt(f) for m, f in zip(self.m, self.rows, strict=True)]
        r = 1 / np.sqrt(self.v + 1e-6)
        groups = [
            [g],
            [np.clip(g, -0.1, 0.1)],
            [p],
            self.m,
            [self.v],
            [m * r for m in self.m],
            [r],
            [g * factor for factor in u],
            [g * r],
            self.rows,
            self.columns,
            [1 / np.sqrt(x + 1e-8) for x in self.rows],
            [1 / np.sqrt(x + 1e-8) for x in self.columns],
            last,
        ]
        hidden = self.weights["mlp.b0"][0]
        for number, group in enumerate(groups):
            for row, feature in enumerate(group):
                feature = np.broadcast_to(feature, p.shape)
                feature = feature / np.sqrt(1e-5 + np.mean(feature**2))
                kernel = self.weights[f"mlp.w0__{number}"][0, row]
                hidden = hidden + feature[..., None] * kernel
        for layer in (1, 2):
            hidden = np.maximum(hidden, 0) @ self.weights[f"mlp.w{layer}"][0]
            hidden = hidden + self.weights[f"mlp.b{layer}"][0]
        size = np.sqrt(np.mean(p**2) + 1e-9)
        return 0.001 * size * hidden[..., 0] * np.exp(0.001 * hidden[..., 1])


def celo(weights, params, loss_and_gradients, num_steps, steps):
    """The params after each step."""
    schedule = Schedule(weights, num_steps)
    tensors = {name: Tensor(weights, p.shape) for name, p in params.items()}
    run = []
    for t in range(steps):
        loss, gradients = loss_and_gradients(params, t)
        factor = schedule(loss)
        params = {
            name: p - factor * tensors[name].move(p, gradients[name]) for name, p in params.items()
        }
        run.append(params)
    return run


def celo_adam(weights, params, loss_and_gradients, num_steps, steps):
    """The params after each step."""
    schedule = Schedule(weights, num_steps)
    m = {name: np.zeros(p.shape) for name, p in params.items()}
    v = {name: np.zeros(p.shape) for name, p in params.items()}
    run = []
    for t in range(steps):
        loss, gradients = loss_and_gradients(params, t)
        factor = schedule(loss)
        moved = {}
        for name, p in params.items():
            g = np.clip(gradients[name], -1000, 1000)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            mean, square = m[name] / (1 - 0.9 ** (t + 1)), v[name] / (1 - 0.999 ** (t + 1))
            moved[name] = p - 0.001 * factor * mean / (1e-8 + np.sqrt(square + 1e-10))
        params = moved
        run.append(params)
    return run
