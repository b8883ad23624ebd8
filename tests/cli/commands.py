"""Commands as a user types them, and a tiny run for them to work on."""

from gnfast.cli import main

TINY = [
    *("--resolution=8", "--width=0.1", "--z-dim=5", "--steps=4", "--batch-d=4", "--batch-g=6", "--device=cpu"),
    *("--checkpoint-every=2", "--sample-every=0", "--n-samples=4", "--no-tensorboard"),
]


def fails(capsys, *words, prints=False):
    """The one line that a bad command prints on stderr, besides what `gnfast eval` says that it is about to do.

    On stdout there is nothing, unless it `prints`.
    """
    capsys.readouterr()
    assert main([*words]) == 2
    captured = capsys.readouterr()
    assert prints or not captured.out
    (line,) = (line for line in captured.err.splitlines() if not line.startswith("measuring "))
    assert line.startswith("gnfast: ")
    return line


def help_of(capsys, *words):
    """What a command's --help prints, without its frames."""
    capsys.readouterr()
    try:
        status = main([*words, "--help"])
    except SystemExit as end:
        status = end.code
    assert not status
    return " ".join(capsys.readouterr().out.replace("│", " ").split())
