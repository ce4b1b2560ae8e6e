"""The commands that play a world: play, rollout, replay."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from curation.errors import InputError
from pipelines.commands.options import Accelerate, Backend, Checkpoint, log_line, needs_extra


def play(
    checkpoint: Checkpoint,
    other: Annotated[
        str, typer.Argument(metavar="[CKPT_B]", help="A second checkpoint, to be played side by side on the same inputs.")
    ] = "",
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at.", min=1, max=65535)] = 8600,
    sessions: Annotated[int, typer.Option(help="How many people can play at a time; others wait in a queue.", min=1)] = 2,
    attract: Annotated[str, typer.Option(metavar="FILE.gcplay", help="A record that the page shows while nobody plays.")] = "",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page.")] = False,
    backend: Backend = "auto",
    accelerate: Accelerate = None,
) -> None:
    """Play a world in the browser: keys, mouse, touch or gamepad; prompts while it runs; records and videos."""
    with needs_extra("playing", "play,train"):
        from model.accelerate import spec
        from model.play import commands, world
    switches = spec.parse(accelerate or [])
    if switches.sequence_parallel > 1 and other:
        raise InputError("--accelerate sequence_parallel: ranks share one world; leave CKPT_B out")
    if _follows(switches):
        world.follow_rank_0(checkpoint, backend, switches)
        return

    def load(log: Callable[[str], None]) -> list[Any]:
        return [world.load_engine(name, log, backend, switches) for name in (checkpoint, other) if name]

    commands.play(load, host, port, sessions, attract, not no_browser, log_line)


def _follows(switches: Any) -> bool:
    """Return whether this is a rank other than 0 of a world that several ranks share: it follows rank 0 and serves no page."""
    from model.parallel import dist

    return switches.sequence_parallel > 1 and not dist.is_first()


def rollout(
    checkpoint: Checkpoint,
    keys: Annotated[
        str, typer.Option(help="Keys and frames: 'W*16 D+W*8 LEFT*10 .*5'; a dot is no key, @DX,DY moves the mouse.")
    ],
    image: Annotated[
        str, typer.Option(help="The first frame: a file, or the name of a start image. Default: the first start image.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="What is to happen in the world.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0)] = 0,
    out: Annotated[str, typer.Option(metavar="VIDEO.mp4", help="Where the video goes.")] = "rollout.mp4",
    record: Annotated[str, typer.Option(metavar="FILE.gcplay", help="Where the record goes; replay makes it again.")] = "",
    backend: Backend = "auto",
    accelerate: Accelerate = None,
) -> None:
    """Play a script of keys without a page, and write the video."""
    with needs_extra("a rollout", "play,train"):
        from model.accelerate import spec
        from model.play import commands, world
    switches = spec.parse(accelerate or [])
    if _follows(switches):
        world.follow_rank_0(checkpoint, backend, switches)
        return
    commands.rollout(
        lambda: world.load_engine(checkpoint, log_line, backend, switches), image, keys, prompt, seed, out, record, log_line
    )


def replay(
    record: Annotated[str, typer.Argument(metavar="FILE.gcplay", help="A record of the play page or of rollout.")],
    checkpoint: Annotated[str, typer.Argument(metavar="[CKPT]", help="The checkpoint that the record was made with.")] = "demo",
    out: Annotated[
        str, typer.Option(metavar="VIDEO.mp4", help="Where the video goes; without it frames are only checked.")
    ] = "",
) -> None:
    """Play a record again and check that every frame is equal; a record of something else is refused with what differs."""
    with needs_extra("a replay", "play,train"):
        from model.play import commands, world
    commands.replay(
        lambda identity: world.load_engine(checkpoint, log_line, accelerate=world.spec_of_record(identity)),
        record,
        out,
        log_line,
    )
