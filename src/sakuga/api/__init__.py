"""The HTTP API of the farm; knows the job store, not Ray."""
