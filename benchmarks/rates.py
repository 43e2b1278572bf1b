"""Orders of convergence: what theory promises of full and of stochastic gradients, as slopes.

    python benchmarks/rates.py

The table of rates: iterations to reach an error ε, if the gradient is Lipschitz.

    assumption          gradient descent    stochastic
    Polyak-Łojasiewicz  log(1/ε)            1/ε
    convex              1/ε                 1/ε²
    nonconvex, ‖∇f‖²    1/ε                 1/ε²

An error that falls as k^p on logarithmic axes is a line with slope p: 1/ε is slope -1, 1/ε² slope
-1/2. All problems are finite sums f_i(w) = f(w) + a_i·w over 1,000 examples with Σ a_i = 0; a
stochastic gradient takes one of them. Errors are means over runs. The script also measures the
floor that a constant rate leaves, the methods that change constants but no slope, and AdaGrad on a
problem with rare features. It writes `rates.json` and `rates.png`.
"""

from collections.abc import Callable
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

from l2ljax import classic

EXAMPLES, RUNS, STEPS = 1_000, 16, 100_000
Function = Callable[[jax.Array], jax.Array]


def noise(seed: int, dim: int, scale: float) -> jax.Array:
    """The a_i, [examples, dim], which sum to zero."""
    draws = np.random.default_rng(seed).normal(size=(EXAMPLES, dim)) * scale
    return jnp.asarray(draws - draws.mean(0), jnp.float64)


def errors(
    tx: optax.GradientTransformation,
    f: Function,
    measure: Function,
    start: jax.Array,
    a: jax.Array | None,
    steps: int = STEPS,
    runs: int = RUNS,
) -> dict[str, np.ndarray]:
    """Means over runs of `measure` at the iterate, at the mean iterate, and its mean so far."""

    def run(key: jax.Array) -> Any:
        def step(carry: Any, t: jax.Array) -> Any:
            x, state, mean, mean_measure = carry
            g = jax.grad(f)(x)
            if a is not None:
                g = g + a[jax.random.randint(jax.random.fold_in(key, t), (), 0, EXAMPLES)]
            updates, state = optax.with_extra_args_support(tx).update(g, state, x, value_fn=f)
            mean_measure = mean_measure + (measure(x) - mean_measure) / (t + 1)
            x = optax.apply_updates(x, updates)
            mean = mean + (x - mean) / (t + 1)
            return (x, state, mean, mean_measure), (measure(x), measure(mean), mean_measure)

        carry = (start, tx.init(start), jnp.zeros_like(start), jnp.zeros(()))
        return jax.lax.scan(step, carry, jnp.arange(steps))[1]

    runs = 1 if a is None else runs
    keys = jax.random.split(jax.random.key(0), runs)
    last, mean, so_far = jax.jit(lambda keys: [x.mean(0) for x in jax.vmap(run)(keys)])(keys)
    return {"last": np.array(last), "of mean": np.array(mean), "mean": np.array(so_far)}


def slope(k: np.ndarray, error: np.ndarray, first: float, last: float) -> float:
    """The exponent p of error ~ k^p, fitted at points that are even on a logarithmic axis."""
    at = np.unique(np.geomspace(first, last, 200).astype(int))
    chosen = np.searchsorted(k, at)
    chosen = np.unique(chosen[chosen < len(k)])
    return float(np.polyfit(np.log(k[chosen]), np.log(error[chosen]), 1)[0])


# Polyak-Łojasiewicz and not convex; f'' = 8 at the minimum, 0.
def pl(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2 + 3 * jnp.sin(x) ** 2)


# Convex, and as flat as rates on convex functions are sharp: eigenvalues over seven decades.
EIGENVALUES = jnp.asarray(np.geomspace(1e-7, 1, 200))


def convex(x: jax.Array) -> jax.Array:
    return jnp.sum(EIGENVALUES * x**2) / 2


def nonconvex(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2 / (1 + x**2))


def square_norm_of_gradient(x: jax.Array) -> jax.Array:
    return jnp.sum(jax.grad(nonconvex)(x) ** 2)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    k = np.arange(1, STEPS + 1)
    ten = jnp.asarray(np.random.default_rng(1).normal(size=10) * 3)
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    slopes: dict[str, Any] = {}

    def draw(ax: Any, k: np.ndarray, error: np.ndarray, label: str, p: float | None) -> None:
        label = label if p is None else f"{label}: slope {p:.2f}"
        keep = np.unique(np.geomspace(1, len(k), 400).astype(int)) - 1
        ax.loglog(k[keep], error[keep], label=label)

    # 1. Polyak-Łojasiewicz.
    ax = axes[0, 0]
    full = errors(classic.gradient_descent(0.02), pl, pl, ten, None, steps=400)["last"]
    tail = slice(100, 350)
    line = np.polyfit(k[tail], np.log(full[tail]), 1)
    spread = np.log(full[tail]) - np.polyval(line, k[tail])
    slopes["PL, gradient descent"] = {
        "log error a step": float(line[0]),
        "expected": float(2 * np.log(1 - 0.02 * 8)),
        "largest deviation from the line": float(np.abs(spread).max()),
    }
    draw(ax, k[:400], full, "gradient descent: geometric", None)
    a = noise(0, 10, 3.0)
    sgd = errors(classic.gradient_descent(lambda t: 2.0 / (t + 100.0)), pl, pl, ten, a)["last"]
    p = slope(k, sgd, 1e3, STEPS)
    slopes["PL, stochastic, rate ~ 1/k"] = {"slope": p, "expected": -1.0}
    draw(ax, k, sgd, "stochastic, rate 1/k", p)
    ax.set(title="Polyak-Łojasiewicz", ylabel="f - min f", ylim=(1e-9, None))

    # 2. Convex.
    ax = axes[0, 1]
    wide = jnp.ones(len(EIGENVALUES))
    full = errors(classic.gradient_descent(1.0), convex, convex, wide, None)["last"]
    p = slope(k, full, 10, STEPS)
    slopes["convex, gradient descent"] = {"slope": p, "expected": -1.0}
    draw(ax, k, full, "gradient descent", p)
    a = noise(1, len(EIGENVALUES), 0.1)
    rate = classic.gradient_descent(lambda t: 0.5 / jnp.sqrt(t + 1.0))
    sgd = errors(rate, convex, convex, wide, a)["of mean"]
    p = slope(k, sgd, 100, STEPS)
    slopes["convex, stochastic, rate ~ 1/√k, mean iterate"] = {"slope": p, "expected": -0.5}
    draw(ax, k, sgd, "stochastic, rate 1/√k, mean iterate", p)
    ax.set(title="convex", ylabel="f - min f")

    # 3. Nonconvex: the mean squared norm of the gradients so far.
    ax = axes[0, 2]
    descent = classic.gradient_descent(0.2)
    full = errors(descent, nonconvex, square_norm_of_gradient, ten, None)["mean"]
    p = slope(k, full, 1e3, STEPS)
    slopes["nonconvex, gradient descent"] = {"slope": p, "expected": -1.0}
    draw(ax, k, full, "gradient descent", p)
    a = noise(2, 10, 0.5)
    horizons = np.geomspace(1e2, STEPS, 7).astype(int)
    at_horizon = []
    for horizon in horizons:
        tx = classic.gradient_descent(2.0 / np.sqrt(horizon))
        done = errors(tx, nonconvex, square_norm_of_gradient, ten, a, steps=int(horizon))
        at_horizon.append(done["mean"][-1])
    p = float(np.polyfit(np.log(horizons[2:]), np.log(at_horizon[2:]), 1)[0])
    slopes["nonconvex, stochastic, rate ~ 1/√K for K steps"] = {"slope": p, "expected": -0.5}
    ax.loglog(horizons, at_horizon, "o-", label=f"stochastic, rate 1/√K: slope {p:.2f}")
    ax.set(title="nonconvex", ylabel="mean of ‖∇f‖² so far")

    # 4. A constant rate leaves a floor in proportion to it.
    ax = axes[1, 0]
    a = noise(0, 10, 3.0)
    rates, floors = np.array([1e-4, 3e-4, 1e-3, 3e-3, 1e-2]), []
    for rate in rates:
        done = errors(classic.gradient_descent(rate), pl, pl, ten / 10, a)["last"]
        floors.append(done[STEPS // 2 :].mean())
        draw(ax, k, done, f"rate {rate:g}", None)
    p = float(np.polyfit(np.log(rates), np.log(floors), 1)[0])
    slopes["floor under a constant rate, against the rate"] = {"slope": p, "expected": 1.0}
    ax.set(title=f"constant rates, stochastic: floor ~ rate^{p:.2f}", ylabel="f - min f")

    # 5. Momentum and curvature change constants, not the slope.
    ax = axes[1, 1]
    curvature = jnp.asarray(np.geomspace(0.1, 10, 10))

    def valley(x: jax.Array) -> jax.Array:
        return jnp.sum(curvature * x**2) / 2

    # What BFGS has learned of the curvature from 60 full gradients, found in its state by name.
    tx, x = classic.bfgs(), ten
    state, step = tx.init(x), jax.jit(tx.update, static_argnames="value_fn")
    for _ in range(60):
        value, g = jax.value_and_grad(valley)(x)
        updates, state = step(g, state, x, value=value, grad=g, value_fn=valley)
        x = optax.apply_updates(x, updates)
    inverse = state.direction.inverse_hessian

    def after(c: float, k0: float) -> Callable[[jax.Array], jax.Array]:
        return lambda t: c / (t + k0)

    bfgs = optax.chain(
        optax.stateless(lambda g, _: inverse @ g), classic.gradient_descent(after(1.0, 20))
    )
    a, constants = noise(3, 10, 1.0), {}
    for name, tx in {
        "gradient descent": classic.gradient_descent(after(10.0, 200)),
        "momentum": classic.momentum(after(1.0, 200)),
        "Nesterov": classic.nesterov(after(1.0, 200)),
        "BFGS": bfgs,
        "Newton": classic.newton(after(1.0, 20)),
    }.items():
        done = errors(tx, valley, valley, ten, a)["last"]
        p = slope(k, done, 3e3, STEPS)
        constant = float(np.exp(np.mean(np.log(done[3000:] * k[3000:]))))
        constants[name] = {"slope": p, "expected": -1.0, "error times k": constant}
        draw(ax, k, done, name, p)
    slopes["stochastic, rate ~ 1/k"] = constants
    ax.set(title="stochastic, curvatures 0.1 to 10, rate 1/k", ylabel="f - min f")

    # 6. Rare features.
    ax = axes[1, 2]
    sparse = {}
    for kind in ("rare", "frequent"):
        finals = rare_features(kind == "rare")
        sparse[kind] = finals
        for i, (name, result) in enumerate(finals.items()):
            style = "-" if kind == "rare" else ":"
            label = f"{name}, {kind} features"
            ax.loglog(result["rates"], result["losses"], style, color=f"C{i}", label=label)
    ax.set(title="logistic regression, 2,000 examples", xlabel="rate", ylabel="loss at the end")
    ax.set(ylim=(0.4, 1.2))
    for ax in axes.flat:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
        if not ax.get_xlabel():
            ax.set_xlabel("iterations")
    for name, row in slopes.items():
        print(name, row)
    for kind, finals in sparse.items():
        print(
            kind,
            {
                name: (row["best_rate"], row["best"], row["best_above_the_truth's"])
                for name, row in finals.items()
            },
        )
    figure.savefig(_report.RESULTS / "rates.png", dpi=100)
    content = {"command": "python benchmarks/rates.py", "slopes": slopes, "sparse": sparse}
    print(_report.write("rates.json", content))


def rare_features(rare: bool, dim: int = 1000, steps: int = 2000) -> dict[str, Any]:
    """Losses of logistic regression after one pass, for each rate, where all weights matter.

    Feature j is 1 with probability 1/j if `rare`, else with the same mean probability for all,
    and 0 otherwise.
    """
    frequency = 1 / np.arange(1, dim + 1)
    if not rare:
        frequency = np.full(dim, frequency.mean())
    truth = jnp.asarray(np.random.default_rng(3).choice([-2.0, 2.0], size=dim))
    frequencies = jnp.asarray(frequency)

    def draw(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        one, two = jax.random.split(key)
        x = jax.random.bernoulli(one, frequencies, (*shape, dim)).astype(float)
        return x, jax.random.bernoulli(two, jax.nn.sigmoid(x @ truth)).astype(float)

    def loss(w: jax.Array, example: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, label = example
        return jnp.mean(optax.sigmoid_binary_cross_entropy(x @ w, label))

    def run(factory: Callable[..., Any], rate: jax.Array, key: jax.Array) -> jax.Array:
        tx, start = factory(rate), jnp.zeros(dim)

        def step(carry: Any, t: jax.Array) -> Any:
            w, state = carry
            g = jax.grad(loss)(w, draw(jax.random.fold_in(key, t), ()))
            updates, state = tx.update(g, state, w)
            return (optax.apply_updates(w, updates), state), None

        (w, _), _ = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))
        return loss(w, draw(jax.random.key(99), (4096,)))

    rates, keys = jnp.asarray(np.geomspace(1e-3, 1e2, 21)), jax.random.split(jax.random.key(5), 4)
    finals = {}
    for name, factory in {
        "constant rate": classic.gradient_descent,
        "rate ~ 1/√k": lambda rate: classic.gradient_descent(lambda t: rate / jnp.sqrt(t + 1.0)),
        "AdaGrad": classic.adagrad,
    }.items():
        both = jax.vmap(jax.vmap(run, (None, None, 0)), (None, 0, None))
        losses = np.array(jax.jit(both, static_argnums=0)(factory, rates, keys).mean(1))
        best = int(losses.argmin())
        assert 0 < best < len(rates) - 1, "the best rate is on the edge of the grid"
        least = loss(truth, draw(jax.random.key(99), (4096,)))
        finals[name] = {
            "rates": np.array(rates).tolist(),
            "losses": losses.tolist(),
            "best_rate": float(rates[best]),
            "best": float(losses[best]),
            "best_above_the_truth's": float(losses[best] - least),
        }
    return finals


if __name__ == "__main__":
    main()
