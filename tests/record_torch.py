"""Records the sequences of torch's optimizers that `classic/test_classic_torch.py` compares with.

torch is no dependency of the tests: run this by hand, with torch 2.13.0 in the environment,

    python tests/record_torch.py

and commit the JSON. All methods see the same gradients, whatever their params, so that no loss
has to be written in two libraries; the decimals of Python's `repr` are exact for float64.
"""

import json
from pathlib import Path

import numpy as np
import torch

STEPS = 120
PATH = Path(__file__).parent / "classic" / "torch_sequences.json"

# name: (class, its arguments, whether the rate lr / (1 + t) is used instead of lr)
RUNS = {
    "gradient_descent": (torch.optim.SGD, {"lr": 0.1}, False),
    "gradient_descent_scheduled": (torch.optim.SGD, {"lr": 0.1}, True),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, False),
    "momentum_scheduled": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, True),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, False),
    "nesterov_scheduled": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, True),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-10}, False),
    "adagrad_from_a_tenth": (
        torch.optim.Adagrad,
        {"lr": 0.1, "eps": 1e-3, "initial_accumulator_value": 0.1},
        True,
    ),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.99, "eps": 1e-8}, False),
    "rmsprop_momentum": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.8}, True),
    "rmsprop_centered": (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "eps": 1e-4}, False),
    "rmsprop_centered_momentum": (
        torch.optim.RMSprop,
        {"lr": 0.01, "centered": True, "momentum": 0.8, "eps": 1e-4},
        True,
    ),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0, "rho": 0.9, "eps": 1e-6}, False),
    "adadelta_scheduled": (torch.optim.Adadelta, {"lr": 0.5, "rho": 0.95, "eps": 1e-4}, True),
    "adam": (torch.optim.Adam, {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}, False),
    "adam_scheduled": (torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-3}, True),
    "adam_l2": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.06}, False),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.03}, False),
    "adamw_scheduled": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.03}, True),
    "amsgrad": (torch.optim.Adam, {"lr": 0.01, "betas": (0.9, 0.9), "amsgrad": True}, False),
    "amsgrad_scheduled": (torch.optim.Adam, {"lr": 0.1, "eps": 1e-3, "amsgrad": True}, True),
}


def record() -> dict:
    """All sequences, as plain lists."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=4)
    # Gradients of several sizes, and one coordinate whose gradient is zero all along.
    gradients = rng.normal(size=(STEPS, 4)) * np.array([1.0, 1e-3, 1e2, 0.0])
    gradients[STEPS // 2 :] *= 0.1  # so that a maximum differs from what it is of
    sequences = {}
    for name, (optimizer_class, arguments, scheduled) in RUNS.items():
        params = torch.tensor(start, requires_grad=True)
        optimizer = optimizer_class([params], **arguments)
        sequence = []
        for t, gradient in enumerate(gradients):
            if scheduled:
                optimizer.param_groups[0]["lr"] = arguments["lr"] / (1 + t)
            params.grad = torch.tensor(gradient)
            optimizer.step()
            sequence.append(params.tolist())
        sequences[name] = sequence
    return {
        "torch": torch.__version__.split("+")[0],
        "start": start.tolist(),
        "gradients": gradients.tolist(),
        "sequences": sequences,
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(record()) + "\n")
