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
# As `l2ljax`, but a state is saved after every chunk of meta-steps.
PROGRAM = "import sys; from l2ljax.cli import _commands, main; _commands.SAVE_SECONDS = 0.0; " + (
    "sys.exit(main())"
)

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.fixture
def start():
    """Starts both processes of a job; those that are left at the end are killed."""
    started = []

    def job(*words):
        address = f"localhost:{free_port()}"
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
        common = [*map(str, words), "--distributed", "--coordinator", address, "--processes", "2"]
        job = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "train", *common, "--process", str(number)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
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


def assert_same_weights(folder, expected):
    weights = [jax.tree.leaves(learned.restore(path)[1]) for path in (folder, expected)]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_two_processes_make_the_weights_of_one(tmp_path, start):
    job = start(*SETTINGS, "--steps", 5, "--out", tmp_path / "two")
    status, _, err = run("train", *SETTINGS, "--steps", 5, "--out", tmp_path / "one")
    assert status == 0, err
    first, second = assert_finished(job)
    assert_same_weights(tmp_path / "two", tmp_path / "one")
    assert "weights:" in first
    assert "weights:" not in second


def test_a_job_that_lost_a_process_goes_on_from_its_checkpoint(tmp_path, start):
    folder, words = tmp_path / "two", ["--steps", 400, "--out"]
    job = start(*SETTINGS, *words, folder)
    for _ in range(1200):
        # Those that are being written have longer names.
        if any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
            break
        assert job[1].poll() is None, job[1].communicate()[0]
        time.sleep(0.1)
    job[1].kill()
    job[0].kill()
    assert not (folder / "card.json").exists()
    first, _ = assert_finished(start("--out", folder, "--resume"))
    assert "going on from meta-step" in first
    assert "going on from meta-step 0" not in first
    status, _, err = run("train", *SETTINGS, *words, tmp_path / "one")
    assert status == 0, err
    histories = [np.load(path / "history.npz")["loss"] for path in (folder, tmp_path / "one")]
    np.testing.assert_allclose(histories[0][:5], histories[1][:5], rtol=1e-5)
    assert len(histories[0]) == len(histories[1]) == 400
    # Rounding grows over hundreds of meta-steps.
    np.testing.assert_allclose(*histories, rtol=0.05)


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
