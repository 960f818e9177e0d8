"""Simulation of many virtual devices on one machine, with the agents' and coordinator's code."""
