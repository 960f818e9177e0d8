"""Atomic files and folders, locks, SQLite databases with the same settings, and text files."""
