"""Many virtual devices on one machine, through the functions of agents and coordinator."""
