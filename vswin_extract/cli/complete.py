"""What a shell completes: names of weights, ids of a file's videos. Nothing that imports torch."""

import click
from click.shell_completion import CompletionItem


def weights_names(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The bundled and the published weights; where none begins so, files."""
    from vswin_extract.weights.registry import BUNDLED, manifest

    names = [name for name in (BUNDLED, *manifest()) if name.startswith(begun)]
    return [CompletionItem(begun, type="file"), *map(CompletionItem, names)]


def video_ids(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The videos of the file that was named before; where none begins so, files."""
    from vswin_extract.errors import VswinError
    from vswin_extract.store.features import open_features

    try:
        with open_features(context.params.get("file") or "") as features:
            ids = [video for video in features if video.startswith(begun) and video.isprintable()]
    except (OSError, VswinError):  # no file yet, or not ours: the command says so when it is run
        ids = []
    return [CompletionItem(begun, type="file"), *map(CompletionItem, ids)]
