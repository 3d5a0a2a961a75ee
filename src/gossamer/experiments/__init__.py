"""Data, reference models, tasks, one readable training loop and reports: a client of the public API."""
