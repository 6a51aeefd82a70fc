"""Slurm: the shard of a task by its environment, and the batch script of an array whose tasks are shards.

vswin slurm ──sbatch──> array: task 0, task 1, … ──shard directories──> journal
                 └────> merge, after the array: journal ──> output
"""

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from vswin_extract.errors import UsageError
from vswin_extract.files import FileKind
from vswin_extract.job.shard import Shard

WARNING = 120
"""Seconds before the end of a task at which Slurm sends it a signal."""
SCRIPT = """\
#!/bin/bash
{directives}
#
# Written by `vswin slurm`: extracts into {output}, by {tasks} tasks that share one journal.
#
# Submit the array, and a merge that begins when the whole array has ended, and fails if videos are missing. (afterok
# would never begin once a task has failed, even if the task was requeued and succeeded.)
#
#   array=$(sbatch --parsable {name})
#   sbatch --dependency=afterany:"${{array%;*}}" {merge}
#
# If a task failed: `scontrol requeue JOB_TASK` while the array still exists, and the merge waits for it. Later, submit
# the task again, `sbatch --array=TASK {name}`, and then the merge. Finished videos are never extracted again.

warned=
trap 'warned=1; kill -USR1 "$child" 2>/dev/null' USR1 # the time is nearly over: finish the videos in flight
trap : TERM                                           # Slurm sends it to the command too: wait for the command

# In the background, because a trap runs at once only during wait. If this script is killed by SIGKILL where Slurm does
# not use cgroups, the command goes on beside the requeued one. That does no harm: each has a directory of its own.
{extract} --shard "$SLURM_ARRAY_TASK_ID/{tasks}" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # a signal ended wait, and the command still runs
    wait "$child"
    code=$?
done

case $code in
3) # some videos failed: the merged file lists them, and the task has done its work
    exit 0
    ;;
138 | 143) # stopped by a signal; requeue, but not for ever, in case a single video takes longer than a task may run
    if [ -n "$warned" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 100 ]; then
        scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && exit 0
    fi
    ;;
esac
exit "$code"
"""

WRITTEN = FileKind("a script of vswin slurm", (b"# Written by `vswin slurm`",), within=1 << 16)


def own_shard(environment: Mapping[str, str]) -> tuple[Shard, str] | None:
    """Return the shard of this process, and the variables that it follows from: as a task of an array, as one of
    several tasks that srun started, or as both. None where the environment names neither.

    The tasks of an array divide all videos among them, whatever their indices: --array=5-7 is shards 0/3 to 2/3,
    --array=5 is shard 0/1. Raises UsageError for indices without a regular step, as in --array=1,3,4, because a task
    does not know how many tasks come before it.
    """
    array, step = _array_task(environment), _step_task(environment)
    if array and step:
        (task, tasks), (process, processes) = array, step
        return Shard(task * processes + process, tasks * processes), "SLURM_ARRAY_TASK_ID and SLURM_PROCID"
    if array:
        return Shard(*array), "SLURM_ARRAY_TASK_ID"
    return (Shard(*step), "SLURM_PROCID") if step else None


def _array_task(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the number of this task in the array, and the number of tasks."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    task, count, least, most, step = (_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in names)
    step = max(step, 1)
    index, off = divmod(task - least, step)
    if off or most - least != (count - 1) * step:
        raise UsageError(
            f"the {count} indices of this Slurm array, from {least} to {most}, have no regular step, so which shard is "
            f"task {task}'s cannot be told; name it by --shard I/N, or --shard none to extract everything"
        )
    return index, count


def _step_task(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the number of this task in an srun, and the number of tasks. A batch script has SLURM_NTASKS and
    SLURM_PROCID too, but no step. A job that is submitted from inside a step inherits SLURM_STEP_NUM_TASKS, but has a
    SLURM_NTASKS of its own."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1" or tasks != environment.get("SLURM_NTASKS"):
        return None
    return _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isdecimal():
        state = "is not set" if value is None else f"is {value!r}"
        raise UsageError(
            f"{name} {state} in a task of Slurm; name the shard by --shard I/N, or --shard none to extract everything"
        )
    return int(value)


def array_script(
    extract: Sequence[str], output: str, tasks: int, directives: Sequence[str], merge: Sequence[str], name: str
) -> str:
    """Return the batch script of an array of tasks.

    `extract`: the command that writes `output`, without --shard. `directives`: more options of sbatch. `merge`:
    arguments of sbatch that submit the merge. `name`: name of the script's file. Raises UsageError for a line break in
    any of them, which would end a line of the script.
    """
    for text in (*extract, *directives, *merge, name):
        if "\n" in text or "\r" in text:
            raise UsageError(f"{text!r} has a line break, which cannot be in a batch script")
    ours = [
        "--job-name=vswin-extract",
        f"--array=0-{tasks - 1}",
        "--ntasks=1",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{WARNING}",
    ]
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {shlex.quote(each)}" for each in (*ours, *directives)),
        output=output,
        tasks=tasks,
        name=shlex.quote(name),
        merge=shlex.join(merge),
        extract=shlex.join(extract),
    )


def merge_job(command: Sequence[str], directives: Sequence[str]) -> list[str]:
    """Return the arguments of sbatch that submit a merge `command`. Failed videos do not make the job fail."""
    return ["--job-name=vswin-merge", *directives, f"--wrap={shlex.join(command)} || test $? -eq 3"]


def submit(script: str, merge: Sequence[str]) -> tuple[str, str]:
    """Submit an array by its script, and the merge that depends on it. Return the ids of both jobs.

    Raises UsageError where sbatch is missing or refuses one of the two; then neither stays submitted.
    """
    array = _sbatch([], script)
    try:
        return array, _sbatch([f"--dependency=afterany:{array}", *merge])
    except UsageError:
        subprocess.run(["scancel", array], check=True, capture_output=True)
        raise


def _sbatch(arguments: Sequence[str], script: str = "") -> str:
    command = ["sbatch", "--parsable", *arguments]
    try:
        done = subprocess.run(command, input=script, capture_output=True, encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError as error:
        raise UsageError("no sbatch on the PATH: submit on a machine that has Slurm") from error
    if done.returncode:
        reason = "; ".join(line.removeprefix("sbatch: error: ") for line in done.stderr.splitlines())
        raise UsageError(f"sbatch refused, and nothing is submitted: {reason}")
    return done.stdout.strip().partition(";")[0]  # the name of the cluster follows, where there are several
