"""The text of `status` and `watch`, from the JSON object of `coordinator/snapshot.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from fedclip_edge.cli.device_tables import device_table, facts_text
from fedclip_edge.reporting.status_words import facts, headline
from fedclip_edge.reporting.table import width_of


def status_text(status: Mapping[str, Any], stream: TextIO) -> str:
    """Format a status (`coordinator/snapshot.py`)."""
    lines = [f"fleet {status['fleet']}: {headline(status)}"]
    lines.append(facts_text(facts(status), width_of(stream)))
    if status["devices"]:
        lines += ["", device_table(status["devices"], stream, costs=False)]
    if status["more"]:
        lines.append(f"and {status['more']} more; --all shows every device")
    return "\n".join(lines)
