"""Checks of one device, from its packages to its fleet: `fedclip-edge doctor`."""
