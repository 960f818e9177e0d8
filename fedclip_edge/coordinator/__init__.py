"""The coordinator's process, and everything that only a coordinator needs."""
