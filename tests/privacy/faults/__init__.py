"""The ledger under fire: seeded schedules of crashes and concurrent processes, and a witness that counts for itself.

baton.py      processes as threads of which exactly one runs; a seeded schedule says who goes on at each point
storage.py    real stores in which a process can be killed before, in or after each operation
remote.py     an S3 server on the loopback interface
witness.py    what truly happened: each touch of sensitive images, each noisy step, each artifact that was visible
bench.py      the pipeline's private stages, real but for networks and noise; the one place that knows such details
schedule.py   one seed -> one story -> one verdict
race.py       many writers for the last of a budget
planted.py    faults that the suite has to find
work.py, __main__.py   `python -m tests.privacy.faults [N]`
"""
