"""Where the state lives: paths, files, locks, journals, event logs, and what is known of runs."""
