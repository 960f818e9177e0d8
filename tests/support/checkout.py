"""Folders of the checkout that tests read, and the shared data next to it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).parent
SHARED = ROOT.parent / "shared" / "data"  # real pictures and features; tests skip without them
