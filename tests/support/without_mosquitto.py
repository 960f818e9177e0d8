"""A machine without mosquitto."""

from __future__ import annotations

import pytest

from fedclip_edge.transport import local_broker


def no_mosquitto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_broker, "_DAEMON_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
