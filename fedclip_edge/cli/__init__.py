"""The commands, one file each; slow imports are inside the commands."""
