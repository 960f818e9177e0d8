"""The messages between agents and coordinator, and their byte formats; no sockets."""
