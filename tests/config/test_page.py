"""The table [page]: an address that others can reach needs HTTPS."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_edge.config.page import PageSettings


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "[::1]:8080", "localhost:1", "127.1.2.3:9"])
def test_this_machine_alone_needs_no_certificate(listen: str) -> None:
    assert PageSettings(listen).certificate is None


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "[::]:8080", "10.0.0.7:80", "fleet.example:1"])
def test_an_address_that_others_can_reach_needs_https(listen: str) -> None:
    with pytest.raises(ValueError, match="can be reached from other machines, which needs HTTPS"):
        PageSettings(listen)
    assert PageSettings(listen, (), Path("c"), Path("k")).address[1] > 0
    with pytest.raises(ValueError, match="expected both or neither"):
        PageSettings(listen, (), Path("c"))
