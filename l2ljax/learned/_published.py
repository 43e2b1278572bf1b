"""Weights of other people's learned optimizers, read into ours."""

import os
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from l2ljax import checkpoint
from l2ljax.core import LearnedOptimizer, Phi
from l2ljax.learned._celo import celo
from l2ljax.learned._celo_adam import celo_adam
from l2ljax.learned._lstm import lstm
from l2ljax.learned._rnnprop import rnnprop

Arrays = Mapping[str, np.ndarray]


def published(
    path: str | os.PathLike[str], *, num_steps: int | None = None
) -> tuple[LearnedOptimizer, Phi]:
    """Reads published weights of Celo, Celo-Adam, RNNprop or the LSTM of Andrychowicz et al.

    They do not come with this package. The files hold the arrays of the authors' checkpoints under
    these names (`+` joins what is a name with each part):

    | | arrays |
    |---|---|
    | LSTM (`lstm`), RNNprop (`rnnprop`) | `lstm_1.` and `lstm_2.` + `w_gates` (rows `[x; h]`, gates i, g, f, o as in Sonnet), `b_gates`; `linear.` + `w`, `b`; RNNprop also `input_projection.` + `w`, `b` |
    | Celo (`celo`), Celo-Adam (`celo_adam`) | `scheduler.` + `initial_hidden`, `initial_cell`, `linear_1.w`, `.b`, `linear_2.w`, `.b`, `rnn.linear.w`, `.b` (gates i, g, f, o as in Haiku), `step_size.w`, `.b`; Celo also `mlp.` + `w0__0` to `w0__13`, `w1`, `w2`, `b0`, `b1`, `b2` |

    The LSTM's output is multiplied by 0.01 and its p is 5, RNNprop's is 0.01 tanh, as their authors
    (VITA-Group/L2O-Training-Techniques, amoudgl/celo) have it.

    Args:
        path: a safetensors file; arrays beside those above are ignored.
        num_steps: the steps planned, which Celo and Celo-Adam must know.

    Returns:
        The learned optimizer and its φ: `opt.bind(phi)` is the transformation, and `save` keeps it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, has none of these sets of arrays or arrays of
            other shapes, or `num_steps` is missing where it is needed.
    """  # noqa: E501
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; expected a safetensors file")
    try:
        arrays = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} must be a safetensors file: {error}") from error
    try:
        opt, phi = _converted(file, arrays, num_steps)
    except KeyError as error:
        raise ValueError(f"{file} must hold the array {error}, got {sorted(arrays)}") from error
    expected = jax.eval_shape(opt.init, jax.random.key(0))
    checkpoint.require_same(f"{file} has arrays of other shapes than expected", expected, phi)
    return opt, jax.tree.map(jnp.asarray, phi)


def _converted(
    file: pathlib.Path, arrays: Arrays, num_steps: int | None
) -> tuple[LearnedOptimizer, Phi]:
    if "scheduler.step_size.w" in arrays:
        if num_steps is None:
            raise ValueError(f"num_steps must be the steps planned for {file}, got none")
        schedule = _schedule(arrays)
        if "mlp.w1" not in arrays:
            return celo_adam(num_steps), {"schedule": schedule}
        return celo(num_steps), {"mlp": _celo_network(arrays), "schedule": schedule}
    network = {
        "lstm_0": _lstm_layer(arrays["lstm_1.w_gates"], arrays["lstm_1.b_gates"]),
        "lstm_1": _lstm_layer(arrays["lstm_2.w_gates"], arrays["lstm_2.b_gates"]),
        "output_kernel": arrays["linear.w"],
        "output_bias": arrays["linear.b"],
    }
    if "input_projection.w" not in arrays:
        return lstm(p=5.0, output_scale=0.01), network
    # They have m̂/√v̂ first, we have g/√v̂.
    encoder = {
        "kernel": arrays["input_projection.w"][::-1].copy(),
        "bias": arrays["input_projection.b"],
    }
    return rnnprop(output_scale=0.01), {"encoder": encoder, "lstm": network}


def _lstm_layer(kernel: np.ndarray, bias: np.ndarray) -> Phi:
    """From gates i, g, f, o with the one of the forget gate left out to i, f, g, o with it."""

    def ordered(columns: np.ndarray) -> np.ndarray:
        i, g, f, o = np.split(columns, 4, axis=-1)
        return np.concatenate([i, f, g, o], axis=-1)

    bias = ordered(bias)
    quarter = len(bias) // 4
    bias[quarter : 2 * quarter] += 1
    return {"kernel": ordered(kernel), "bias": bias}


def _dense(arrays: Arrays, name: str) -> Phi:
    return {"kernel": arrays[f"{name}.w"], "bias": arrays[f"{name}.b"]}


def _schedule(arrays: Arrays) -> Phi:
    output = _dense(arrays, "scheduler.step_size")
    gates = _dense(arrays, "scheduler.rnn.linear")
    return {
        "linear_1": _dense(arrays, "scheduler.linear_1"),
        "linear_2": _dense(arrays, "scheduler.linear_2"),
        "cell": arrays["scheduler.initial_cell"].reshape(-1),
        "hidden": arrays["scheduler.initial_hidden"].reshape(-1),
        "lstm": {
            "lstm_0": _lstm_layer(**gates),
            "output_kernel": output["kernel"],
            "output_bias": output["bias"],
        },
    }


def _celo_network(arrays: Arrays) -> Phi:
    first = np.concatenate([arrays[f"mlp.w0__{group}"][0] for group in range(14)])
    kernels = [first, arrays["mlp.w1"][0], arrays["mlp.w2"][0]]
    biases = [arrays[f"mlp.b{layer}"][0] for layer in range(3)]
    # The last of three outputs is used nowhere.
    kernels[2], biases[2] = kernels[2][:, :2].copy(), biases[2][:2].copy()
    layers = enumerate(zip(kernels, biases, strict=True))
    return {f"dense_{layer}": {"kernel": w, "bias": b} for layer, (w, b) in layers}
