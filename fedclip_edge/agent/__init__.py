"""The agent: the device's process, and the modules that only it needs."""
