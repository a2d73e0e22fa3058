"""Flows, one a use. Without PREFECT_API_URL they run on a server of their own, started for the run."""

import os

from privimage.machine.readers import go_on_without_readers

# Set before Prefect is imported; what the user has set stays. The start-up limit of 20 s is too short for a cold start.
for _name, _value in {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)

# A worker reads what its flow runs print. One that is killed takes no healthy run with it.
go_on_without_readers()
