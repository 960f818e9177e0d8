"""Pauses of a device: temperature with hysteresis, and its battery."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_edge.agent.pause import LOOK_S, Pause, is_on_battery, temperature_c
from fedclip_edge.config.limits import Limits


class Box:
    """A box with sensors that the test sets, and its pause."""

    def __init__(self, sensors: Path, limits: Limits) -> None:
        self.sensors = sensors
        self.now = 0.0
        self.limits = limits
        self.pause = Pause(lambda: self.limits, sensors)

    def heat(self, *degrees: float) -> None:
        for number, value in enumerate(degrees):
            zone = self.sensors / "thermal" / f"thermal_zone{number}"
            zone.mkdir(parents=True, exist_ok=True)
            (zone / "temp").write_text(f"{round(value * 1000)}\n")

    def supply(self, name: str, **files: str) -> None:
        folder = self.sensors / "power_supply" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(f"{text}\n")

    def look(self) -> str:
        self.now += LOOK_S
        self.pause.look(self.now)
        return self.pause.reason


def test_a_hot_box_pauses_until_it_is_cooler_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = Box(tmp_path, Limits(max_temperature_c=80))
    reasons = []
    for degrees in (79.9, 80.5, 82.0, 79.0, 75.5, 74.9, 79.0, 81.0):
        box.heat(40.0, degrees)
        reasons.append(box.look())
    first = "the box has 80 degrees, and max_temperature_c is 80"
    assert reasons[:7] == ["", first, first, first, first, "", ""]
    assert reasons[7] == "the box has 81 degrees, and max_temperature_c is 80"
    events = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert events == ["work_paused", "work_resumed", "work_paused"]


def test_a_limit_that_is_taken_away_ends_the_pause(tmp_path: Path) -> None:
    box = Box(tmp_path, Limits(max_temperature_c=50))
    box.heat(60)
    assert box.look()
    box.limits = Limits()
    assert not box.look()


def test_the_sensors_are_read_every_few_seconds_only(tmp_path: Path) -> None:
    box = Box(tmp_path, Limits(max_temperature_c=50))
    assert not box.look()
    box.heat(60)
    box.pause.look(box.now + LOOK_S / 2)
    assert not box.pause.is_on()


@pytest.mark.parametrize("text", ["", "hot", "-274000", "999000", "\xff"])
def test_a_zone_that_says_nonsense_is_left_out(tmp_path: Path, text: str) -> None:
    box = Box(tmp_path, Limits(max_temperature_c=50))
    box.heat(1)
    (tmp_path / "thermal" / "thermal_zone0" / "temp").write_text(text)
    assert temperature_c(tmp_path) is None
    assert not box.look()
    box.heat(1, 51)
    (tmp_path / "thermal" / "thermal_zone0" / "temp").write_text(text)
    assert box.look()


def test_a_box_without_sensors_never_pauses(tmp_path: Path) -> None:
    box = Box(tmp_path / "none", Limits(max_temperature_c=30, on_battery="pause"))
    assert not box.look()


def test_a_box_on_its_battery_pauses_until_it_has_mains(tmp_path: Path) -> None:
    box = Box(tmp_path, Limits(on_battery="pause"))
    box.supply("BAT0", type="Battery", status="Discharging")
    box.supply("AC", type="Mains", online="0")
    assert box.look() == 'the box runs on its battery, and on_battery is "pause"'
    box.supply("AC", online="1")  # a large load may take from both
    assert not box.look()


def test_batteries_of_other_things_do_not_count(tmp_path: Path) -> None:
    box = Box(tmp_path, Limits())
    box.supply("mouse", type="Battery", status="Discharging", scope="Device")
    assert not is_on_battery(tmp_path)
    box.supply("BAT0", type="Battery", status="Full")
    assert not is_on_battery(tmp_path)
    box.supply("BAT0", status="Discharging")
    assert is_on_battery(tmp_path)
    assert not box.look(), "on_battery is 'run'"
