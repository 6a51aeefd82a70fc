"""What a shell completes: names of weights, and the videos of a file. Imports neither torch nor rich."""

import click
from click.shell_completion import CompletionItem


def weights_names(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the bundled and the published weights that start with `begun`, and tell the shell to complete files
    too."""
    from vswin_extract.weights.registry import BUNDLED, manifest

    names = [name for name in (BUNDLED, *manifest()) if name.startswith(begun)]
    return [CompletionItem(begun, type="file"), *map(CompletionItem, names)]


def video_ids(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the videos of the file on the command line that start with `begun`, and tell the
    shell to complete files too."""
    from vswin_extract.errors import VswinError
    from vswin_extract.store.features import open_features

    try:
        with open_features(context.params.get("file") or "") as features:
            ids = [video for video in features if video.startswith(begun) and video.isprintable()]
    except (OSError, VswinError):  # the command will say what is wrong with the file
        ids = []
    return [CompletionItem(begun, type="file"), *map(CompletionItem, ids)]
