"""Settings from fleet.toml and agent.toml, as checked, frozen dataclasses."""
