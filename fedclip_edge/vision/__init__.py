"""Computation of raw features from picture files, without torch and without the network."""
