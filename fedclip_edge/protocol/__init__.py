"""The messages between agents and coordinator and their bytes; no sockets."""
