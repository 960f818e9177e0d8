"""The fleet's page: a process beside `serve` that asks it through the control socket."""
