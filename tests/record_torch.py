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

STEPS = 50
PATH = Path(__file__).parent / "classic" / "torch_sequences.json"

# name: (class, its arguments, whether the rate lr / (1 + t) is used instead of lr)
RUNS = {
    "gradient_descent": (torch.optim.SGD, {"lr": 0.1}, False),
    "gradient_descent_scheduled": (torch.optim.SGD, {"lr": 0.1}, True),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, False),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, False),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.99, "eps": 1e-8}, False),
    "adam": (torch.optim.Adam, {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}, False),
    "adam_scheduled": (torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-3}, True),
}


def record() -> dict:
    """All sequences, as plain lists."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=4)
    # Gradients of several sizes, and one coordinate whose gradient is zero all along.
    gradients = rng.normal(size=(STEPS, 4)) * np.array([1.0, 1e-3, 1e2, 0.0])
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
