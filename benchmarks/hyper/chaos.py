"""Where learning is chaotic: the loss after 50 steps against the rate, and the slope of it.

    python benchmarks/hyper/chaos.py --data-dir DATA

After Maclaurin, Duvenaud and Adams (2015, section 4): a network 784-200-50-10 on 10,000 images of
MNIST, 50 steps of momentum (γ = 0.5) on minibatches of 100 from one θ₀ with standard deviation
e⁻³, the loss on 2,000 of the training images after them, for log rates from 0.5 to 2.5. Slopes are
exact, backwards through all steps.
"""

from typing import Any

import _mnist
import _report
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from l2ljax import learned, meta, tasks
from l2ljax.core import Scalar, Task

HORIZON, DECAY = 50, 0.5
LOG_RATES = np.linspace(0.5, 2.5, 51)


def network(dataset: tasks.Dataset, batch_size: int) -> Task:
    return tasks.mlp_classifier(dataset, (200, 50), "tanh", batch_size, init_std=float(np.exp(-3)))


@jax.jit
def loss_and_slope(batches: Task, judge: Task, log_rate: jax.Array) -> tuple[Scalar, Scalar]:
    opt = learned.reversible_momentum(horizon=1, decay=DECAY)

    def loss(log_rate: jax.Array) -> Scalar:
        phi = {**opt.init(_mnist.KEY), "learning_rate": log_rate[None]}
        _, params = meta.unroll(
            opt.bind(phi), batches, (), _mnist.KEY, horizon=HORIZON, second_derivatives=True
        )
        return judge.loss(params, (), _mnist.KEY)

    return jax.value_and_grad(loss)(log_rate)


def draw(content: dict[str, Any]) -> plt.Axes:
    """Losses above, absolute slopes below."""
    _, (above, below) = plt.subplots(2, sharex=True, figsize=(7, 4.6), layout="constrained")
    above.plot(content["log_rates"], content["losses"], ".-", color="black")
    above.set(yscale="log", ylabel=f"loss after {HORIZON} steps")
    below.plot(content["log_rates"], np.abs(content["slopes"]), ".-", color="#0072B2")
    below.set(yscale="log", ylabel="absolute slope", xlabel=r"log rate, $\log\alpha$")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5, which="both")
    return above


def main() -> None:
    arguments = _mnist.arguments(__doc__)
    data = _mnist.data(arguments.data_dir, 10_000)
    batches, judge = network(data, 100), network(data, 2_000)
    rows = [loss_and_slope(batches, judge, jnp.float32(r)) for r in LOG_RATES]
    losses, slopes = (np.array(column, np.float64).tolist() for column in zip(*rows, strict=True))
    content = {"log_rates": LOG_RATES.tolist(), "losses": losses, "slopes": slopes}
    command = "python benchmarks/hyper/chaos.py --data-dir DATA"
    _report.publish("hyper/chaos", command, content, draw(content))


if __name__ == "__main__":
    main()
