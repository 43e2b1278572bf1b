"""Records torch's L-BFGS, for `test_quasi_newton.py`.

torch is no dependency of the tests: run this by hand, with torch 2.13.0 in the environment,

    python tests/classic/record_torch_lbfgs.py

and commit the JSON; the decimals of Python's `repr` are exact for float64.
"""

import json
from pathlib import Path

import torch

STEPS = 100
PATH = Path(__file__).parent / "torch_lbfgs.json"

# torch shortens the first step where the 1-norm of the gradient is above 1, and we where the
# 2-norm is: here neither does. torch skips pairs by an absolute threshold, sᵀy <= 1e-10, which a
# small rate stays above.
RUN = {
    "start": [0.4, -0.5, 0.6, -0.7, 0.8, -0.9],
    "curvatures": [0.5, 0.2, 0.1, 0.05, 0.02, 0.01],
    "cubic": 0.1,
    "learning_rate": 0.08,
    "memory_size": 4,
}


def record() -> dict:
    """The run and its params after each step, as plain lists."""
    params = torch.tensor(RUN["start"], dtype=torch.float64, requires_grad=True)
    curvatures = torch.tensor(RUN["curvatures"], dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        [params],
        lr=RUN["learning_rate"],
        history_size=RUN["memory_size"],
        max_iter=1,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn=None,
    )

    def closure():
        with torch.no_grad():
            params.grad = curvatures * params + RUN["cubic"] * params**3
        return torch.zeros(())

    assert closure() is not None and params.grad.abs().sum() < 1
    sequence = []
    for _ in range(STEPS):
        optimizer.step(closure)
        sequence.append(params.tolist())
    return {"torch": torch.__version__.split("+")[0], **RUN, "sequence": sequence}


if __name__ == "__main__":
    PATH.write_text(json.dumps(record()) + "\n")
