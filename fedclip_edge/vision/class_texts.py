"""Class texts as bytes: `vectors` float32 (C, D), unit rows; names, prompt and logit scale.

Law: the same class texts give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedclip_edge.errors import BundleError
from fedclip_edge.records import ClassTexts, normalized_name
from fedclip_edge.vision.manifest import AGAIN


def pack_classes(classes: ClassTexts) -> bytes:
    """Return the bytes of a classes.safetensors."""
    # Use one metadata entry, because safetensors writes several in an order that varies.
    head = {
        "names": list(classes.names),
        "prompt": classes.prompt,
        "logit_scale": float(classes.logit_scale),
    }
    return save({"vectors": classes.vectors}, metadata={"classes": json.dumps(head)})


def read_classes(path: Path) -> ClassTexts:
    """Read a classes.safetensors; raises BundleError if it is damaged, OSError if it is missing."""
    try:
        with safe_open(path, framework="np") as file:
            head = json.loads((file.metadata() or {})["classes"])
            return ClassTexts(
                # Earlier versions of `export` kept the Unicode form of the file of class names.
                names=tuple(normalized_name(str(name)) for name in head["names"]),
                vectors=file.get_tensor("vectors"),
                logit_scale=float(head["logit_scale"]),
                prompt=str(head["prompt"]),
            )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} has no valid class texts ({error}); {AGAIN}") from error
