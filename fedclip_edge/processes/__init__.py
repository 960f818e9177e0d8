"""Child processes that end with their parent, and threads whose failure ends their process."""
