"""Records the rates of torch's cyclical schedule that `test_schedules.py` compares with.

torch is no dependency of the tests: run this by hand, with torch 2.13.0 in the environment,

    python tests/classic/record_torch_schedules.py

and commit the JSON; the decimals of Python's `repr` are exact for float64.
"""

import json
from pathlib import Path

import torch

STEPS = 60
PATH = Path(__file__).parent / "torch_schedules.json"

# Half cycles that do and do not divide powers of two, and a base rate of zero.
RUNS = [
    {"mode": mode, "base_lr": base, "max_lr": highest, "step_size_up": size, "gamma": gamma}
    for mode, gamma in [("triangular", 1.0), ("triangular2", 1.0), ("exp_range", 0.97)]
    for base, highest, size in [(0.001, 0.006, 7), (0.0, 0.5, 4), (0.02, 0.3, 1)]
]


def rates(**arguments: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.CyclicLR(optimizer, cycle_momentum=False, **arguments)
    sequence = []
    for _ in range(STEPS):
        sequence.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return sequence


if __name__ == "__main__":
    runs = [{**arguments, "rates": rates(**arguments)} for arguments in RUNS]
    record = {"torch": torch.__version__.split("+")[0], "runs": runs}
    PATH.write_text(json.dumps(record) + "\n")
