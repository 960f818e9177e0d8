"""Small configurations registered in open_clip, and a local hub."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VISION = {"layers": 2, "width": 64, "image_size": 32, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
DECODER = {"context_length": 76, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
BASE: dict[str, Any] = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": BASE,
    "small-quickgelu": {**BASE, "quick_gelu": True},
    "small-wider-images": {**BASE, "embed_dim": 48, "vision_cfg": {**VISION, "width": 128}},
    "small-siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "vit_small_siglip_32",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **TEXT,
            "context_length": 64,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    "small-larger-pictures": {**BASE, "vision_cfg": {**VISION, "image_size": 64}},
    "small-eos": {
        **BASE,
        "custom_text": True,
        "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407},
    },
    "small-both-ways": {**BASE, "custom_text": True, "text_cfg": {**TEXT, "no_causal_mask": True}},
    "small-hub-tokenizer": {**BASE, "text_cfg": {**TEXT, "hf_tokenizer_name": "org/tokens"}},
    "small-coca": {
        **BASE,
        "custom_text": True,
        "vision_cfg": {**VISION, "output_tokens": True, "attentional_pool": True},
        "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": DECODER,
    },
}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_PLAIN = {"interpolation": "bilinear", "resize_mode": "squash", **_HALF}
TAGS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "plain_e1": {"hf_hub": "org/small.plain_e1/", **_PLAIN},
        "quick_e1": {"hf_hub": "org/small.quick_e1/", "quick_gelu": True, **_PLAIN},
    },
    "small-quickgelu": {
        "quick_e1": {"hf_hub": "org/small.quick_e1/", "quick_gelu": True, **_PLAIN}
    },
    "small-larger-pictures": {
        "first": {"hf_hub": "org/first/", **_PLAIN},
        "second": {"hf_hub": "org/second/", **_PLAIN, "mean": (0.1, 0.2, 0.3)},
    },
}


def _register_tower() -> None:
    """Register `vit_small_siglip_32` in timm: SigLIP's image tower, with two layers."""
    from timm.models import _registry, vision_transformer

    def vit_small_siglip_32(**given: Any) -> Any:
        sizes = {"img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 2, "class_token": False}
        return vision_transformer._create_vision_transformer(
            "vit_base_patch16_siglip_224", **{**given, **sizes}
        )

    _registry._model_entrypoints["vit_small_siglip_32"] = vit_small_siglip_32


@contextmanager
def registered(folder: Path) -> Iterator[None]:
    """Register CONFIGS and TAGS in open_clip inside the `with` block."""
    from fedclip_edge.exporting.torchvision_ops import declare_missing

    declare_missing()
    import open_clip
    from open_clip import factory
    from open_clip.pretrained import _PRETRAINED

    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    _register_tower()
    _PRETRAINED.update(TAGS)
    try:
        yield
    finally:
        factory._MODEL_CONFIG_PATHS.remove(folder)
        for name in CONFIGS:
            del factory._MODEL_CONFIGS[name]
        for name in TAGS:
            del _PRETRAINED[name]


@contextmanager
def hub(files: Mapping[str, bytes]) -> Iterator[str]:
    """A hub with `files`, a map of `org/name/file` to content; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_content=False)

        def do_GET(self) -> None:
            self._answer(with_content=True)

        def _answer(self, *, with_content: bool) -> None:
            content = files.get(self.path.strip("/").replace("/resolve/main/", "/"))
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", f'"{len(content or b"")}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if with_content and content:
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
