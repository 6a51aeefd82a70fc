"""`vswin slurm`: an array of tasks on a Slurm cluster, and the merge after it."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from vswin_extract.cli.command import ExampleCommand, command
from vswin_extract.cli.config import absolute, check_environment, settings
from vswin_extract.cli.download import fetch_weights
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.extract import extract, make_job
from vswin_extract.cli.extract_options import NOT_OF_JOB
from vswin_extract.cli.merge import merge_command
from vswin_extract.cli.options import target_option
from vswin_extract.cli.origins import CONFIG, is_given
from vswin_extract.formatting import plural, printable

if TYPE_CHECKING:
    from vswin_extract.files import Target
    from vswin_extract.job.job import Job


class SlurmCommand(ExampleCommand):
    """A command whose error says where options of vswin-extract go."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if any(error.option_name in (*each.opts, *each.secondary_opts) for each in extract.params):
                ctx.fail(f"{error.option_name} is an option of vswin-extract: put all of those at the end, after --")
            raise


@command(
    "vswin slurm videos/ out.h5 --tasks 8 --gpus-per-task 1 -o extract.sbatch",
    "vswin slurm videos/ out.h5 --tasks 8 --submit -- --weights t-k400 --stage 4",
    cls=SlurmCommand,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="VIDEOS... OUT.h5 [-- OPTIONS OF VSWIN-EXTRACT]")
@click.option(
    "--tasks", type=click.IntRange(min=1), required=True, metavar="N", help="Tasks of the array, a shard each."
)
@click.option("--partition", metavar="NAME", help="Of both jobs, the array and the merge.")
@click.option("--account", metavar="NAME", help="Of both jobs.")
@click.option("--time", metavar="TIME", help="Limit of a task, which is requeued and continues when it is over.")
@click.option("--gpus-per-task", metavar="N", help="Several are used with: -- --device cuda:all")
@click.option("--cpus-per-task", metavar="N", help="Decoding needs them.")
@click.option("--mem", metavar="SIZE", help="Memory of a task, e.g. 32G.")
@click.option(
    "--sbatch",
    "others",
    multiple=True,
    metavar="OPTION",
    help="Any other option of sbatch for the array, as --sbatch=--qos=long, or --sbatch=--array=0-7%2 for two tasks at "
    "a time of 8. Repeatable. The merge is left to the cluster's defaults.",
)
@click.option("-o", "script", type=click.Path(dir_okay=False), metavar="FILE", help="Write the script to FILE.")
@target_option("FILE")
@click.option("--submit", is_flag=True, help="Submit the array, and the merge that follows it.")
@reports_errors
def slurm(
    arguments: tuple[str, ...],
    tasks: int,
    partition: str | None,
    account: str | None,
    others: tuple[str, ...],
    script: str | None,
    overwrite: bool,
    submit: bool,
    **resources: str | None,
) -> None:
    """Print the batch script that extracts VIDEOS by an array of tasks, each a shard, into one journal, of which a
    merge makes OUT.h5; or submit both. Options of vswin-extract come after --."""
    from pathlib import Path

    from vswin_extract.errors import UsageError
    from vswin_extract.journal.directory import journal_directory
    from vswin_extract.run import slurm as library
    from vswin_extract.store.hdf5 import check_output

    with extract.make_context("vswin-extract", list(arguments)) as context:
        check_environment(context)  # the tasks would refuse the same
        asked = context.params
        if asked["shard"] != "auto" or asked["dry_run"] or "-" in asked["inputs"]:
            raise UsageError("--shard, --dry-run and videos listed on standard input (-) are not for tasks of an array")
        job = make_job(**{name: value for name, value in asked.items() if name not in NOT_OF_JOB} | {"shard": "none"})
        job.check_directories()
        check_output(job.output, job.overwrite)
        fetch_weights(job.weights, job.offline)  # the tasks may have no network
        target = script_target(script, overwrite, job, context) if script else None
        options = list(spelt(context))
    paths = [absolute(path) for path in (*asked["inputs"], asked["output"])]
    shared = [*directives(account=account, partition=partition)]
    journal = journal_directory(job.output, job.storage)
    merge = merge_command(Path(paths[-1]), journal, job.layout, job.overwrite)
    merging = library.merge_job([console_script("vswin"), *merge], shared)
    grace = [f"--grace={library.WARNING - 30}"]  # a later --grace in the options counts
    text = library.array_script(
        [console_script("vswin-extract"), *paths, *grace, *options],
        paths[-1],
        tasks,
        [*shared, *directives(**resources), *others],
        merging,
        os.path.basename(script or "extract.sbatch"),
    )
    if target is not None:
        with target.write() as unfinished:
            unfinished.write_bytes(os.fsencode(text))
        if not submit:
            click.echo(f"{printable(str(script))}: how to submit it, and the merge after it, is in its first lines")
    elif not submit:
        click.echo(os.fsencode(text), nl=False)
    if submit:
        array, last = library.submit(text, merging)
        click.echo(
            f"job {array}: extracts, in {plural(tasks, 'task')}\n"
            f"job {last}: merges, when job {array} has ended\n"
            f"next: squeue --jobs {array},{last}; when both jobs are gone, {printable(paths[-1])} is there, or "
            f"slurm-{last}.out says what is missing; then run the same command again, which continues"
        )


def script_target(script: str, overwrite: bool, job: "Job", context: click.Context) -> "Target":
    """Return the file of -o. Raises UsageError if it must not be written: if the job reads or writes it, too."""
    from pathlib import Path

    from vswin_extract.errors import UsageError
    from vswin_extract.files import Target
    from vswin_extract.run.slurm import WRITTEN
    from vswin_extract.weights.cache import find_weights

    if os.path.realpath(script) == str(job.output):
        raise UsageError(f"{script} is the output of the tasks; name another file for the script")
    given = [context.params["manifest"], context.meta.get(CONFIG), find_weights(job.weights), job.output]
    reads = [*filter(None, given), *(video.location for video in job.videos)]
    target = Target(Path(script), WRITTEN, lambda: reads, overwrite)
    target.check()
    return target


def directives(**options: str | None) -> Iterator[str]:
    """Yield the options of sbatch that were given."""
    for name, value in options.items():
        if value is not None:
            yield f"--{name.replace('_', '-')}={value}"


def spelt(context: click.Context) -> Iterator[str]:
    """Yield the options that the command line, the environment or a file gave, as words that mean the same in any
    directory."""
    for option, value in settings(context):
        if not isinstance(option, click.Option) or not is_given(context, option):
            continue
        if option.is_flag:
            yield from [option.opts[-1]] if value else option.secondary_opts[-1:]
            continue
        for each in value if option.multiple else [value]:
            yield option.opts[-1]
            yield str(each)


def console_script(name: str) -> str:
    """Return the path of a console script of this environment. Raises UsageError."""
    from vswin_extract.errors import UsageError

    found = shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if found is None:
        raise UsageError(f"the console script {name} is not installed; pip install vswin-extract")
    return absolute(found)
