"""A job to its events, on one device or many: the whole run.

`extract` (api.py) makes a job of the caller's arguments, and `run` (run.py) runs it. run.py starts a worker pool, opens
the journal, gives the remaining work to the workers and makes the output. What is left to do, and in which order, comes
from work.py, clip_counts.py and schedule.py; dispatch.py gives it to the workers of a pool. A pool (pool.py) is one
worker in this process (in_process_pool.py), a process for each device (process_pool.py) or actors on a Ray cluster
(ray_pool.py). slurm.py makes shards of Slurm tasks. survey.py counts clips without extracting.
"""
