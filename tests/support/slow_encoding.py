"""The work of an encoder process that decodes slowly; `slow_agent.py` sets the two variables."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

from fedclip_edge.agent.encoding import Encoding
from fedclip_edge.vision import embedding, pictures

__all__ = ["Encoding"]

_decode, _count = pictures.decode, itertools.count(1)


def _slowly(*given: Any, **more: Any) -> Any:
    time.sleep(float(os.environ["SLOW_S"]))
    go = os.environ["SLOW_GO"]
    is_held = next(_count) > 8 and go != "-"
    while is_held and not Path(go).exists():
        time.sleep(0.05)
    return _decode(*given, **more)


vars(embedding)["decode"] = _slowly
