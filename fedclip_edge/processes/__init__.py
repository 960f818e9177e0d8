"""Child processes, threads, signals and the service manager of this process."""
