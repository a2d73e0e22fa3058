"""What docs/benchmarks.md reports, runnable.

`python -m benchmarks SUITE` compares methods (harness/, suites/). Every other module measures one thing, and prints its
figures as one JSON object on its last line.
"""
