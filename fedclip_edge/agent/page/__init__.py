"""The box's page: a process that reads the agent's files, and writes labels and nothing else."""
