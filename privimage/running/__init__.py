"""Running stages: reuse, charging, plan, jobs, grants and declarations, housekeeping."""
