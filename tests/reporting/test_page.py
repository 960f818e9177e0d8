"""The colours of the pages: readers with any kind of colour vision can tell lines apart."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedclip_edge import reporting

CSS = (Path(reporting.__file__).parent / "page.css.j2").read_text()
LEAST_CONTRAST = 3.0  # of a line to the page, WCAG 2.1, 1.4.11
LEAST_DIFFERENCE = 16.0  # CIE76 delta E; 2.3 is just noticeable

# Machado, Oliveira and Fernandes (2009), full severity, for linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour: str) -> NDArray[np.float64]:
    digits = colour.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
    value = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def scheme(number: int) -> dict[str, str]:
    """The variables of the light (0) or the dark (1) page."""
    return dict(re.findall(r"--(\w+): (#\w+)", CSS.split(":root {")[number + 1].split("}")[0]))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("vision", VISIONS)
def test_two_colours_of_lines_differ_for_every_reader(number: int, vision: str) -> None:
    colours = scheme(number)
    names = [*(f"c{i}" for i in range(7)), "soft"]  # soft: the grey of zero-shot
    seen = {name: lab(np.array(VISIONS[vision]) @ linear(colours[name])) for name in names}
    for one, other in combinations(names, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= LEAST_DIFFERENCE, (one, other)


@pytest.mark.parametrize("number", [0, 1])
def test_a_line_stands_out_from_the_page(number: int) -> None:
    colours = scheme(number)
    paper = luminance(colours["paper"])
    for name in [*(f"c{i}" for i in range(7)), "soft", "held"]:
        light, dark = sorted((luminance(colours[name]), paper), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= LEAST_CONTRAST, name
