"""Slurm: which shard a task's environment says it is, and the batch script of an array of tasks that are shards.

vswin slurm ──sbatch──> array: task 0, task 1, … ──shard directories──> journal
                 └────> merge, after the array: journal ──> output
"""

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from vswin_extract.errors import UsageError
from vswin_extract.job.shard import Shard

WARNING = 120
"""Seconds before a task's end at which Slurm says so."""
SCRIPT = """\
#!/bin/bash
{directives}
#
# Written by `vswin slurm`: extracts into {output}, by {tasks} tasks that share one journal.
#
# Submit the array, and a merge that begins when the whole array has ended, well or not, and fails if videos are missing
# (afterok would never begin once a task has failed, even if it was requeued and is through):
#
#   array=$(sbatch --parsable {name})
#   sbatch --dependency=afterany:"${{array%;*}}" {merge}
#
# A task that failed: `scontrol requeue JOB_TASK` while the array is there, and the merge waits for it; later submit it
# again, `sbatch --array=TASK {name}`, and then the merge. What is finished is never extracted again.

warned=
trap 'warned=1; kill -USR1 "$child" 2>/dev/null' USR1 # the time is nearly over: finish the videos in flight
trap : TERM                                           # which Slurm sends to the command, too: wait for it

# In the background, since a trap runs at once only during wait. If this script is killed by SIGKILL, the command lives
# on where Slurm does not use cgroups, and does what the requeued one does, too; each writes where no other does.
{extract} --shard "$SLURM_ARRAY_TASK_ID/{tasks}" &
child=$!
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # a signal has ended wait, not the command
    wait "$child"
    code=$?
done

case $code in
3) # some videos failed, which is no failure of the task: the merged file lists them
    exit 0
    ;;
138 | 143) # stopped, as it was told; not for ever, in case a single video takes longer than the time allows
    if [ -n "$warned" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 100 ]; then
        scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && exit 0
    fi
    ;;
esac
exit "$code"
"""


def own_shard(environment: Mapping[str, str]) -> tuple[Shard, str] | None:
    """The shard that this process is as a task of an array, as one of several tasks that srun started, or as both; and
    the variables that say so. None where Slurm says nothing of the kind.

    The tasks of an array share out everything among them, whatever their indices: --array=5-7 is shards 0/3 to 2/3,
    --array=5 is shard 0/1. Raises UsageError for indices without a regular step, as --array=1,3,4, since a task is not
    told how many come before its own.
    """
    array, step = _array_task(environment), _step_task(environment)
    if array and step:
        (task, tasks), (process, processes) = array, step
        return Shard(task * processes + process, tasks * processes), "SLURM_ARRAY_TASK_ID and SLURM_PROCID"
    if array:
        return Shard(*array), "SLURM_ARRAY_TASK_ID"
    return (Shard(*step), "SLURM_PROCID") if step else None


def _array_task(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Which of how many tasks of an array."""
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
    """Which of how many tasks of an srun. A batch script has SLURM_NTASKS and SLURM_PROCID, too, but no step; what is
    submitted from inside a step inherits its SLURM_STEP_NUM_TASKS, but has a SLURM_NTASKS of its own."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1" or tasks != environment.get("SLURM_NTASKS"):
        return None
    return _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isdecimal():
        said = "is not set" if value is None else f"is {value!r}"
        raise UsageError(
            f"{name} {said} in a task of Slurm; name the shard by --shard I/N, or --shard none to extract everything"
        )
    return int(value)


def array_script(
    extract: Sequence[str], output: str, tasks: int, directives: Sequence[str], merge: Sequence[str], name: str
) -> str:
    """The batch script of an array of so many tasks.

    `extract`: the command and its arguments, but for --shard, writing `output`. `directives`: more options of sbatch.
    `merge`: arguments of sbatch that submit the merge. `name`: what the script's file will be called. Raises UsageError
    for a line break, which would end a line of the script wherever it stands.
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
    """Arguments of sbatch that submit `command`, a merge. That some videos failed is no failure of the job."""
    return ["--job-name=vswin-merge", *directives, f"--wrap={shlex.join(command)} || test $? -eq 3"]


def submit(script: str, merge: Sequence[str]) -> tuple[str, str]:
    """Submit an array by its script, and the merge that depends on it; the ids of both jobs.

    Raises UsageError where sbatch is missing, or refuses one of the two; then neither is left.
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
        said = "; ".join(line.removeprefix("sbatch: error: ") for line in done.stderr.splitlines())
        raise UsageError(f"sbatch has refused, and nothing is submitted: {said}")
    return done.stdout.strip().partition(";")[0]  # with the cluster behind it, where there are several
