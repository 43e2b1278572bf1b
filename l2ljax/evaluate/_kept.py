"""Results of a benchmark on disk: a file for each, made once."""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from l2ljax import checkpoint

_UNUSUAL = re.compile(r"[^\w.-]+")


class Store(NamedTuple):
    """A folder of results, or none.

    Attributes:
        folder: where they are; None: they are kept nowhere.
    """

    folder: pathlib.Path | None

    def get(
        self, name: str, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What stands on disk for these settings, or is measured now and written there.

        Args:
            name: of the result; with a digest of `settings` it is the name of the file, so that
                other weights and other settings have another one.
            settings: plain JSON values, all that the result depends on.
            measure: gives the result, plain JSON values.

        Raises:
            ValueError: for a file that is damaged.
        """
        if self.folder is None:
            return measure()
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        file = self.folder / f"{_UNUSUAL.sub('-', name)}-{digest}.json"
        if not file.exists():
            content = {"name": name, "settings": settings, "result": measure()}
            checkpoint.write_file(file, json.dumps(content, indent=1, allow_nan=False) + "\n")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["settings"] != json.loads(text):
                raise ValueError("it is of other settings")
            result: dict[str, Any] = content["result"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged, remove it: {error!r}") from error
        return result
