"""The demo: a world of drawn pictures, a tiny CLIP for it, and a federation on one machine."""
