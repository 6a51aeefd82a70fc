"""What a run is asked to do, and what it says while it does it.

A `Job` (job.py) goes in: one frozen value with the videos, the output and every setting, checked when it is made.
Events (events.py) come out, in the order in which they happen. A shard (shard.py) is one task's part of a job's videos.
versions.py knows the versions of this package and of what it computes with.
"""
