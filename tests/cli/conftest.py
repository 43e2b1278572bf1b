"""A finished run that the tests of the command line share."""

import pytest
from cli_runs import TRAIN, contents, run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    status, out, err = run(*TRAIN, "--out", folder)
    assert status == 0, err
    assert f"l2ljax.learned.load({str(folder)!r})" in out
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """A finished run that may be changed."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, content in contents(trained).items():
        (folder / name).write_bytes(content)
    return folder
