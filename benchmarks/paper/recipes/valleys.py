"""Functions to minimize that have no network in them."""

import jax
import jax.numpy as jnp
from jax import Array

from l2ljax.core import Key, Params, Problem, Task, closure


def _valley_sample(key: Key, *, dim: int, spread: float) -> Problem:
    keys = jax.random.split(key, 2)
    basis, _ = jnp.linalg.qr(jax.random.normal(keys[0], (dim, dim)))
    logs = jax.random.uniform(keys[1], (dim,), minval=-spread, maxval=0.0)
    return basis * jnp.exp(logs / 2)


def _normal_init(key: Key, problem: Problem, *, dim: int) -> Params:
    del problem
    return {"x": jax.random.normal(key, (dim,))}


def _valley_loss(params: Params, problem: Problem, key: Key, *, noise: float) -> Array:
    x = params["x"]
    value = 0.5 * jnp.sum((x @ problem) ** 2)
    return value + noise * jnp.vdot(jax.random.normal(key, x.shape) @ problem.T, x)


def _valley_objective(params: Params, problem: Problem, key: Key) -> Array:
    del key
    return 0.5 * jnp.sum((params["x"] @ problem) ** 2)


def valley(dim: int, spread: float, noise: float) -> Task:
    """A quadratic whose curvatures lie e^spread apart; noise of its gradient scales with them."""
    return Task(
        closure(_valley_sample, dim=dim, spread=spread),
        closure(_normal_init, dim=dim),
        closure(_valley_loss, noise=noise),
        closure(_valley_objective),
    )


def _banana_sample(key: Key) -> Problem:
    return jnp.exp(jax.random.uniform(key, (), minval=0.0, maxval=3.0))


def _banana_loss(params: Params, problem: Problem, key: Key) -> Array:
    del key
    x = params["x"]
    return jnp.mean(problem * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def banana(dim: int) -> Task:
    """Rosenbrock's function of many coordinates."""
    return Task(closure(_banana_sample), closure(_normal_init, dim=dim), closure(_banana_loss))


def _sensing_sample(key: Key, *, size: int, rank: int) -> Problem:
    keys = jax.random.split(key)
    u, v = (jax.random.normal(k, (size, rank)) / rank**0.25 for k in keys)
    return u, v


def _sensing_init(key: Key, problem: Problem, *, size: int, rank: int) -> Params:
    del problem
    keys = jax.random.split(key)
    return {n: 0.3 * jax.random.normal(k, (size, rank)) for n, k in zip("uv", keys, strict=True)}


def _sensing_loss(params: Params, problem: Problem, key: Key, *, batch: int, noise: float) -> Array:
    u, v = problem
    keys = jax.random.split(key, 3)
    a, b = (jax.random.normal(k, (batch, len(u))) / len(u) ** 0.5 for k in keys[:2])
    seen = jnp.sum((a @ params["u"]) * (b @ params["v"]), axis=1)
    true = jnp.sum((a @ u) * (b @ v), axis=1) + noise * jax.random.normal(keys[2], (batch,))
    return jnp.mean((seen - true) ** 2)


def sensing(size: int, rank: int, noise: float, batch: int = 64) -> Task:
    """A matrix of low rank from random projections of it."""
    return Task(
        closure(_sensing_sample, size=size, rank=rank),
        closure(_sensing_init, size=size, rank=rank + 2),
        closure(_sensing_loss, batch=batch, noise=noise),
    )
