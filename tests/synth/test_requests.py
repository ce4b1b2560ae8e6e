"""Requests: ids by content, seeds by request, and draws that do not depend on each other."""

from synth import taxonomy
from synth.requests import InitialFrame, Request, draw_requests

FRAMES = [InitialFrame(f"/f/{n}.png", f"/f/{n}.png", token=str(n)) for n in range(8)]


def some(names, each=3, seed=0, frames=FRAMES):
    return list(draw_requests(taxonomy.select(names), frames, each, seed))


def test_equal_arguments_give_equal_requests_and_other_interactions_change_none():
    alone, among = some(["snow"]), some(["rain", "snow"])
    assert alone == among[3:]
    assert some(["snow"], seed=1) != alone
    assert len({one.frame for one in alone}) == 3


def test_pictures_are_not_repeated_and_maps_are():
    assert len(some(["snow"], each=20)) == len(FRAMES)
    assert len(some(["snow"], each=20, frames=[InitialFrame("doom:freedoom2:MAP01")])) == 20
    assert len({one.seed for one in some(["snow"], each=20, frames=[InitialFrame("doom:freedoom2:MAP01")])}) == 20


def test_the_id_is_of_the_content_not_of_the_place():
    here, there = (
        Request(taxonomy.built_in()["snow"], "snow", InitialFrame(uri, uri, token="t"), 1) for uri in ("/a.png", "/b.png")
    )
    assert here.id == there.id
    assert len({here.seed_of(n) for n in range(5)}) == 5
    assert here.seed_of(3) == there.seed_of(3)


def test_plain_data_and_back():
    (one,) = some(["open_door"], each=1)
    assert Request.from_json(one.to_json()) == one
