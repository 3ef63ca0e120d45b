"""Where tasks run: executors, attempts, events and the run folder."""
