"""The generated pages of the manual's reference.

    python tests/support/reference_pages.py --write

writes them anew; tests/test_reference.py fails while one differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import command_reference
import configuration_reference
import exit_code_reference
import log_event_reference
import metric_reference
from checkout import ROOT

FOLDER = ROOT / "docs" / "reference"
PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": command_reference.page,
    "configuration.md": configuration_reference.page,
    "exit-codes.md": exit_code_reference.page,
    "log-events.md": log_event_reference.page,
    "metrics.md": metric_reference.page,
}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/support/reference_pages.py --write")
    for name, made in PAGES.items():
        (FOLDER / name).write_text(made(), encoding="utf-8")
