"""The commands, one file each; whatever is slow to import is imported inside the command."""
