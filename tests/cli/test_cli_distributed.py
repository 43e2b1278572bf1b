"""`l2ljax train` over several processes of this machine, each with two devices."""

import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from l2ljax import learned
from tests.cli.cli_runs import run

SETTINGS = "--task quadratic --batch 8 --horizon 4 --truncation 2".split()
# As `l2ljax`, but a state is saved after every validation, of which there are 10.
PROGRAM = """
import sys, time
from l2ljax.cli import _commands, main
_commands.SAVE_SECONDS = 0.0
"""
RUNS = f"{PROGRAM}sys.exit(main())"
# A process that is lost: all it does after its first save is to keep the others waiting.
HANGS = f"""{PROGRAM}
save = _commands.Saver.save
_commands.Saver.save = lambda saver: (save(saver), time.sleep(600))
sys.exit(main())
"""

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.fixture
def start():
    """Starts both processes of a job; those that are left at the end are killed."""
    started = []

    def job(*words, second=RUNS):
        address = f"localhost:{free_port()}"
        environment = {
            **os.environ,
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        common = [*map(str, words), "--distributed", "--coordinator", address, "--processes", "2"]
        job = [
            subprocess.Popen(
                [sys.executable, "-c", program, "train", *common, "--process", str(number)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number, program in enumerate([RUNS, second])
        ]
        started.extend(job)
        return job

    yield job
    for process in started:
        process.kill()
        process.communicate()


def assert_finished(job):
    outputs = [process.communicate(timeout=300)[0] for process in job]
    assert [process.returncode for process in job] == [0, 0], outputs
    return outputs


@pytest.mark.slow
def test_a_job_that_lost_a_process_goes_on_from_its_checkpoint_to_the_weights_of_one(
    tmp_path, start
):
    folder, words = tmp_path / "two", ["--steps", 20, "--out"]
    job = start(*SETTINGS, *words, folder, second=HANGS)
    # Checkpoints that are being written have longer names.
    deadline = time.monotonic() + 300
    while not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        assert time.monotonic() < deadline
        assert [process.poll() for process in job] == [None, None], job[1].communicate()[0]
        time.sleep(0.1)
    for process in job:
        process.kill()
    assert not (folder / "card.json").exists()
    first, second = assert_finished(start("--out", folder, "--resume"))
    assert "going on from meta-step 2\n" in first
    assert "weights:" in first
    assert "weights:" not in second

    status, _, err = run("train", *SETTINGS, *words, tmp_path / "one")
    assert status == 0, err
    histories = [np.load(path / "history.npz")["loss"] for path in (folder, tmp_path / "one")]
    assert len(histories[0]) == len(histories[1]) == 20
    np.testing.assert_allclose(histories[0][:5], histories[1][:5], rtol=1e-5)
    np.testing.assert_allclose(*histories, rtol=1e-4)
    weights = [jax.tree.leaves(learned.restore(path)[1]) for path in (folder, tmp_path / "one")]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coordinator", "localhost:1"], "--coordinator needs --distributed"),
        (["--process", "0"], "--process needs --distributed"),
        (["--distributed", "--processes", "2"], "go together, got none for --coordinator, --proc"),
        (["--mesh", "--batch", "3"], "batch must be a multiple of the 8 devices"),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path, words, message):
    status, _, err = run("train", *SETTINGS, *words, "--out", tmp_path / "run")
    assert status == 2
    assert message in err
