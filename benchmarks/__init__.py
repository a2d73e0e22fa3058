"""What docs/benchmarks.md reports, runnable. Each prints its figures as one JSON object on its last line."""
