"""The page of a device: its pictures, labels, classes and health, in a process of its own."""
