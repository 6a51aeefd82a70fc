"""Where workers run: the worker pools of a run.

A run starts the workers of a pool, sends them orders and receives their messages; it does not know where they run.
pool.py has the protocol and chooses the pool of a job: one worker in this process (in_process.py), a process for each
device (processes.py), or actors on a Ray cluster (ray_pool.py in the run's process, ray_actor.py in the actor).
silence.py finds the workers that stopped answering.
"""
