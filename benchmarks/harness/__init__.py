"""Methods side by side on public stand-ins: suites of runs, and the table of what they are worth."""
