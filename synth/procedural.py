"""The game engines that act interactions out: which places they have, which interactions, and how one is filmed.

A place is named as an initial frame is (`synth.requests`): doom:WAD:MAP, or minetest:MAPGEN:SEED for a world of Minetest. An
engine is imported when it is used, so one that is not installed hinders no other.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curation.errors import AttemptFailed, InputError, Unavailable
from synth.acted import FilmedTake, possible_kinds


@dataclass(frozen=True)
class Shot:
    """What is to be filmed, in the same words for all engines."""

    place: str  # the name of a frame
    interaction: str
    seed: int = 0  # of all random choices
    kind: str = "true"  # one of `synth.acted.KINDS`
    seconds: float = 5.0
    width: int = 640  # px
    height: int = 480  # px

    @property
    def engine(self) -> str:
        return self.place.partition(":")[0]


Done = Callable[[Shot, FilmedTake | AttemptFailed], None]
"""What is called with each take when it is filmed, or with the reason why it failed."""


@dataclass(frozen=True)
class ActingEngine:
    """An engine, as the rest of the package uses it."""

    version: Callable[[], str]  # its name and version. Raises Unavailable where it is not installed
    interactions: Callable[[], Sequence[str]]  # that it can act out
    can_be_undone: Callable[[str], bool]
    places: Callable[[str], Sequence[str]]  # that an item of --frames names. Raises InputError where it names none
    film_all: Callable[[Sequence[Shot], Done], None]  # all in the first one's place, of one length and size

    def film(self, shot: Shot) -> FilmedTake:
        """Film a take. Raises AttemptFailed where it failed, and NoSpot where the place has no room for the interaction."""
        results: list[FilmedTake | AttemptFailed] = []
        self.film_all([shot], lambda _, result: results.append(result))
        if isinstance(results[0], AttemptFailed):
            raise results[0]
        return results[0]

    def possible_kinds(self, interaction: str) -> list[str]:
        """Return the kinds of take that an interaction can have."""
        return possible_kinds(self.can_be_undone(interaction))


def engine(name: str) -> ActingEngine:
    """Return an engine by its name, one of `synth.requests.ENGINES`. Raises Unavailable where its package is absent."""
    return {"doom": _doom, "minetest": _minetest}[name]()


def places(item: str) -> list[str]:
    """Return the places that an item of --frames names: an engine, or some or one of its places."""
    acting = engine(item.partition(":")[0])
    acting.version()  # one that is not installed is said here, and not once for each take
    return list(acting.places(item))


def reason_absent(name: str) -> str:
    """Return why an engine cannot be used here, or an empty text if it can."""
    try:
        engine(name).version()
    except Unavailable as error:
        return str(error)
    return ""


def _doom() -> ActingEngine:
    from synth.doom.engine import VERSION, wads
    from synth.doom.takes import SCRIPTS, InteractionTake, film_take
    from synth.doom.wad import map_names

    def places_of(item: str) -> list[str]:
        known = [f"doom:{wad}:{name}" for wad, path in wads().items() for name in map_names(path)]
        chosen = [name for name in known if name == item or name.startswith(f"{item}:")]
        if not chosen:
            raise InputError(
                f"{item}: no such map; use doom, doom:WAD or doom:WAD:MAP, where WAD is one of {', '.join(wads())}"
            )
        return chosen

    def film_all(shots: Sequence[Shot], done: Done) -> None:
        for shot in shots:
            _, collection, level = shot.place.split(":")
            settings = shot.interaction, shot.seed, shot.kind, shot.seconds, shot.width, shot.height
            try:
                result: FilmedTake | AttemptFailed = film_take(InteractionTake(collection, level, *settings))
            except AttemptFailed as error:
                result = error
            done(shot, result)

    return ActingEngine(
        lambda: f"vizdoom {VERSION}", lambda: tuple(SCRIPTS), lambda name: SCRIPTS[name].can_be_undone, places_of, film_all
    )


def _minetest() -> ActingEngine:
    from synth.engines.minetest_acts import MAPGENS, SCRIPTS, WORLDS, MinetestTake, film_takes, version

    def places_of(item: str) -> list[str]:
        _, *words = item.split(":")
        named = len(words) == 2 and words[1].isdecimal()
        if len(words) > 2 or (words and words[0] not in MAPGENS) or (len(words) == 2 and not named):
            raise InputError(
                f"{item}: no such world; use minetest, minetest:MAPGEN or minetest:MAPGEN:SEED, where MAPGEN is one of"
                f" {', '.join(MAPGENS)}"
            )
        seeds = [int(words[1])] if named else list(WORLDS)
        return [f"minetest:{mapgen}:{seed}" for mapgen in (words[:1] or MAPGENS) for seed in seeds]

    def take_of(shot: Shot) -> MinetestTake:
        _, mapgen, seed = shot.place.split(":")
        return MinetestTake(mapgen, int(seed), shot.interaction, shot.seed, shot.kind, shot.seconds, shot.width, shot.height)

    def film_all(shots: Sequence[Shot], done: Done) -> None:
        takes = {take_of(shot): shot for shot in shots}
        film_takes(list(takes), lambda take, result: done(takes[take], result))

    return ActingEngine(version, lambda: tuple(SCRIPTS), lambda name: SCRIPTS[name].can_be_undone, places_of, film_all)


if __name__ == "__main__":
    sys.stdout.write(reason_absent(sys.argv[1]))  # for the Makefile
