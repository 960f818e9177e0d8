"""A page of a template: one HTML file that holds everything it shows.

Laws: the page asks the network for nothing and runs no script; every text in it is escaped by the
template; a value that the template misses is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedclip_edge.reporting.figures import decimal, difference, kilobytes, percent, points, whole
from fedclip_edge.storage import atomic


def write_page(path: Path, template: Path, values: dict[str, Any]) -> None:
    """Writes the page under a temporary name and renames it."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).resolve().parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["difference"] = difference
    environment.filters.update(
        percent=percent, points=points, kilobytes=kilobytes, decimal=decimal, whole=whole
    )
    page = environment.get_template(template.name).render(**values)
    atomic.write_file(path, page.encode(errors="replace"))  # a file name can be any bytes
