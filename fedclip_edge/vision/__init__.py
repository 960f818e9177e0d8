"""From picture files to raw features; no torch and no network."""
