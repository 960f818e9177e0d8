"""Learning: methods, strategies and evaluation. Only code for devices imports torch."""
