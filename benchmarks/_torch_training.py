"""Meta-training as a user of torch would write it; a process that `throughput.py` runs.

    python benchmarks/_torch_training.py quadratics --episodes 2 --repeats 3
    python benchmarks/_torch_training.py mnist --images 30000

The paper's LSTM (`torch.nn.LSTMCell`, 2x20), one row a coordinate, episodes of 100 steps cut into
segments of 20, Adam on its weights. Gradients of the optimizee are constants to the meta-gradient,
which is one backward pass a segment. Prints a JSON line, as the first study does.
"""

import argparse
import json
import math
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

HORIZON, TRUNCATION, UNITS = 100, 20, 20

Problem = tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]


class LSTMOptimizer(nn.Module):
    """Two LSTM layers and a linear output for each coordinate."""

    def __init__(self, log_sign: bool) -> None:
        super().__init__()
        self.log_sign = log_sign
        self.first = nn.LSTMCell(2 if log_sign else 1, UNITS)
        self.second = nn.LSTMCell(UNITS, UNITS)
        self.output = nn.Linear(UNITS, 1)

    def begin(self, coordinates: int) -> list[Tensor]:
        return [torch.zeros(coordinates, UNITS) for _ in range(4)]

    def forward(self, gradient: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x = gradient[:, None]
        if self.log_sign:
            size = gradient.abs()
            large = size >= math.exp(-10)
            log = torch.where(large, size.clamp_min(1e-20).log() / 10, -1.0)
            sign = torch.where(large, gradient.sign(), math.exp(10) * gradient)
            x = torch.stack([log, sign], dim=1)
        h1, c1 = self.first(x, (state[0], state[1]))
        h2, c2 = self.second(h1, (state[2], state[3]))
        return 0.1 * self.output(h2)[:, 0], [h1, c1, h2, c2]


def quadratics() -> Problem:
    """128 functions of 10 coordinates; θ₀ and the sum of their losses over 128."""
    w, y = torch.randn(128, 10, 10), torch.randn(128, 10)

    def loss(theta: Tensor) -> Tensor:
        found = torch.einsum("bij,bj->bi", w, theta.view(128, 10)) - y
        return found.square().sum() / 128

    return lambda: torch.randn(1280), loss


def mnist(images: Tensor, labels: Tensor) -> Problem:
    """An MLP 784-20-10 on minibatches of 128."""
    shapes = [(784, 20), (20,), (20, 10), (10,)]
    sizes = [math.prod(shape) for shape in shapes]

    def begin() -> Tensor:
        parts = [
            torch.randn(shape) / math.sqrt(shape[0]) if len(shape) > 1 else torch.zeros(shape)
            for shape in shapes
        ]
        return torch.cat([part.flatten() for part in parts])

    def loss(theta: Tensor) -> Tensor:
        parts = [p.view(s) for p, s in zip(theta.split(sizes), shapes, strict=True)]
        rows = torch.randint(len(images), (128,))
        hidden = torch.sigmoid(images[rows] @ parts[0] + parts[1])
        return nn.functional.cross_entropy(hidden @ parts[2] + parts[3], labels[rows])

    return begin, loss


def episode(opt: LSTMOptimizer, meta: torch.optim.Optimizer, problem: Problem) -> None:
    begin, loss = problem
    theta = begin()
    state = opt.begin(theta.numel())
    for _ in range(HORIZON // TRUNCATION):
        theta, state = theta.detach(), [part.detach() for part in state]
        total = torch.zeros(())
        for _ in range(TRUNCATION):
            at = theta.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(at), at)
            update, state = opt(gradient, state)
            theta = theta + update
            total = total + loss(theta)
        meta.zero_grad()
        total.backward()
        meta.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=["quadratics", "mnist"])
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=30_000, help="random ones: the work is equal")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    opt = LSTMOptimizer(log_sign=arguments.problem == "mnist")
    meta = torch.optim.Adam(opt.parameters(), 1e-3)
    images = torch.rand(arguments.images, 784) if arguments.problem == "mnist" else torch.empty(0)
    labels = torch.randint(10, (len(images),))
    seconds = []
    for repeat in range(arguments.repeats + 1):
        start = time.perf_counter()
        for _ in range(arguments.episodes):
            problem = quadratics() if arguments.problem == "quadratics" else mnist(images, labels)
            episode(opt, meta, problem)
        # The first round warms up.
        if repeat:
            seconds.append(time.perf_counter() - start)
    median = sorted(seconds)[len(seconds) // 2]
    result = {
        "problem": arguments.problem,
        "steps_per_s": arguments.episodes * HORIZON / median,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
