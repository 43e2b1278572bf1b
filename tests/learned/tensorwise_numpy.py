"""The rule of `learned.tensorwise` in NumPy, one tensor after another, from its documentation."""

import numpy as np

COEFFICIENTS = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
]


def orthogonalized(leaf, block):
    shape = leaf.shape
    x = leaf.reshape(-1, shape[-1])
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    rows = -(-len(x) // -(-len(x) // block))
    parts = []
    for first in range(0, len(x), rows):
        part = x[first : first + rows]
        part = part / np.sqrt((part**2).sum() + 1e-20)
        for a, b, c in COEFFICIENTS:
            square = part @ part.T
            part = a * part + (b * square + c * square @ square) @ part
        parts.append(part)
    x = np.concatenate(parts) * np.sqrt(x.shape[1])
    return (x.T if turned else x).reshape(shape)


class Tensor:
    """What is remembered of one tensor."""

    def __init__(self, params):
        self.m = np.zeros_like(params)
        self.n = np.zeros_like(params)
        self.v = np.zeros_like(params)
        self.square = 0.0
        self.first = np.sqrt((params**2).mean() + 1e-20)
        self.alignment = np.zeros(2)
        self.trend = np.zeros(2)
        self.drift = 0.0


class Tensorwise:
    """An optimizer of a list of arrays."""

    def __init__(self, phi, params, num_steps=None, block=128):
        self.phi, self.total, self.block = phi, num_steps, block
        self.count = 0
        self.tensors = [Tensor(p) for p in params]

    def update(self, gradients, params):
        t, known = self.count, self.total is not None
        total = self.total if known else 1
        left = max(total - t, 1) / total
        share = np.exp(self.phi["decays"])
        corrections = 1 / (1 - (1 - 0.999999 * share) ** (t + 1))
        seen, parts = [], []
        for s, g, p in zip(self.tensors, gradients, params, strict=True):
            square = (g**2).mean()
            if t > 0 and s.square > 0:
                bound = 25 * s.square / (1 - 0.98 ** max(t, 1))
                if square > bound:
                    g, square = g * np.sqrt(bound / square), bound
            s.square = 0.98 * s.square + 0.02 * square
            log = 0.5 * np.log(square + 1e-20)
            decay = np.array([0.9, 0.99])
            s.trend = np.array([log, log]) if t == 0 else decay * s.trend + (1 - decay) * log
            before_m, before_n = s.m, s.n
            s.m = (1 - share[0]) * s.m + share[0] * g
            s.n = (1 - share[1]) * s.n + share[1] * g
            s.v = (1 - share[2]) * s.v + share[2] * g**2
            scale = 1 / np.sqrt(corrections[2] * s.v + 1e-24)
            directions = [corrections[0] * s.m * scale, corrections[1] * s.n * scale, g * scale]
            unit = directions[2]
            cosines = np.array(
                [
                    (b * scale * unit).mean()
                    / np.sqrt((unit**2).mean() * ((b * scale) ** 2).mean() + 1e-20)
                    for b in (before_m, before_n)
                ]
            )
            s.alignment = cosines if t < 2 else 0.9 * s.alignment + 0.1 * cosines
            logs = [0.5 * np.log((x**2).mean() + 1e-20) for x in (p, *directions)]
            matrix = p.ndim > 1 and min(np.prod(p.shape[:-1]), p.shape[-1]) > 1
            rows, columns = (np.prod(p.shape[:-1]), p.shape[-1]) if matrix else (1, 1)
            seen.append(
                [
                    0.5 * logs[0] + 1,
                    logs[0] - np.log(s.first + 1e-3),
                    logs[1] + 0.5,
                    logs[2] + 1,
                    *s.alignment,
                    logs[3],
                    s.trend[0] - s.trend[1],
                    float(matrix),
                    np.log(rows) / 4,
                    np.log(columns) / 4,
                    s.drift,
                ]
            )
            parts.append((directions, matrix))
        weights = np.sqrt([p.size for p in params])
        weights = weights / weights.sum()
        own = np.array(seen).T
        shared = [
            known,
            known * (0.5 - left),
            known * (0.5 * np.log(left) + 0.5),
            0.5 * np.log10(t + 1) - 1,
            known * (0.5 * np.log10(total) - 1),
            own[4] @ weights,
            own[2] @ weights,
        ]
        x = np.clip([*(np.full(len(params), v) for v in shared), *own], -3, 3)
        linear = self.phi["linear"]
        found = linear["kernel"].T @ x + linear["bias"][:, None]
        if "network" in self.phi:
            first, second = self.phi["network"]["dense_0"], self.phi["network"]["dense_1"]
            hidden = np.maximum(first["kernel"].T @ x + first["bias"][:, None], 0)
            found += second["kernel"].T @ hidden + second["bias"][:, None]
        ramp = min(1, left * (1 + np.exp(-self.phi["ramp"]))) if known else 1
        updates = []
        for s, (directions, matrix), out in zip(self.tensors, parts, found.T, strict=True):
            s.drift = np.clip(s.drift + 0.002 * out[1], -4, 4)
            length = np.exp(min(out[0] + s.drift, 2)) * ramp
            mixed = sum(w * d for w, d in zip(out[2:5], directions, strict=True))
            turned = orthogonalized(mixed, self.block) if matrix else mixed
            step = -length * (mixed + out[5] * (turned - mixed))
            updates.append(np.where((s.v == 0) & (s.m == 0), 0, step))
        self.count += 1
        return updates
