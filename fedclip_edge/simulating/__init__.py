"""Simulation of many devices on one machine, with the code of the agent and the coordinator."""
