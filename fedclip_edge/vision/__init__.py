"""Picture files to raw features, without torch and without the network."""
