"""The coordinator: its process, and the modules that only it needs."""
