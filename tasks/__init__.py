"""Thin Prefect tasks, one a stage: take references, run one stage of the library, return a reference."""
