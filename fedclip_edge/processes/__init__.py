"""Child processes that end with their parent, and threads that end their process."""
