"""The processes of this package: children that end with their parent, threads that end their process."""
