"""The device's process, and everything that only a device needs."""
