"""A benchmark's result of given final losses."""

import numpy as np

from l2ljax.evaluate import Benchmark, Measurement, TaskResults
from l2ljax.suite import SuiteTask


def result_of(finals):
    """The losses on each problem by task and optimizer; Adam's envelope halves at each step."""
    task = SuiteTask("", lambda data_dir: None, steps=2)
    return Benchmark(
        {
            name: TaskResults(
                task,
                {
                    optimizer: Measurement(
                        1.0, np.array(losses, np.float64), None, False, 1, 4, None
                    )
                    for optimizer, losses in of_task.items()
                },
                np.array([8.0, 4.0, 2.0, 1.0, 0.5]),
            )
            for name, of_task in finals.items()
        },
        "Adam",
        0.95,
    )
