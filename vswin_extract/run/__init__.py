"""A job to its events, on one device or many: the whole run.

`extract` (api.py) makes a job of the caller's arguments, and `run` (run.py) runs it: it starts a worker pool, opens the
journal, gives the remaining work to the workers and makes the output. What is left to do, and in which order, comes
from work.py, clip_counts.py and schedule.py; dispatch.py gives it to the workers, and forecast.py tells how many clips
are to be expected. slurm.py makes shards of the tasks of a Slurm array. survey.py counts clips without extracting.
"""
