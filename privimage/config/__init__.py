"""A run's configuration: a frozen section a file, composed by `run.RunConfig`, read by `loading`."""
