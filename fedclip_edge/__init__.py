"""Adapt CLIP to a fleet's own pictures without moving a picture."""

__version__ = "0.1.0"
