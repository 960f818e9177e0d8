"""HTML pages rendered from a template, each one self-contained file.

Laws:

- A page loads nothing from the network and runs no script.
- The template escapes every text in it.
- A value that the template uses but does not get is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedclip_edge.reporting.figures import (
    decimal,
    difference,
    duration,
    kilobytes,
    nats,
    norm,
    percent,
    points,
    whole,
)
from fedclip_edge.reporting.names import pieces
from fedclip_edge.storage import atomic


def write_page(path: Path, template: Path, values: dict[str, Any]) -> None:
    """Render `template` with `values` and write the page to `path`, completely or not at all.

    The template may include templates of this package. Raises jinja2's UndefinedError for a missing
    value, its TemplateNotFound for a missing template, and OSError if the file cannot be written.
    """
    page = templates(template.parent).get_template(template.name).render(**values)
    atomic.write_file(path, page.encode(errors="replace"))  # a file name can hold any bytes


def templates(*folders: Path) -> Environment:
    """Return an environment with the templates of these folders and of this package.

    A template of an earlier folder hides one of the same name in a later one.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).resolve().parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["difference"] = difference
    environment.filters.update(
        percent=percent,
        points=points,
        kilobytes=kilobytes,
        decimal=decimal,
        duration=duration,
        whole=whole,
        nats=nats,
        norm=norm,
    )
    environment.filters["pieces"] = pieces
    return environment
