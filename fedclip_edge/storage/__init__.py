"""Atomic files and folders, file locks, and SQLite databases opened with the same settings."""
