"""The operator's certificates, the registry of enrolled devices, and the broker's files."""
