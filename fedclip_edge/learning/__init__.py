"""From features to a contribution to a model; torch on the device only, no network."""
