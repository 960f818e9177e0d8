"""Atomic files and folders, locks, SQLite databases with the same settings, text that people write."""
