from curation.schema import digest
from pipelines import units
from pipelines.units import Name, Unit


def test_a_name_says_its_video_and_its_part():
    name = Name("0123456789abcdef", digest("x"), 2, 5)
    assert Name.parse(f"{name}.parquet") == name
    assert "." not in str(name)


def test_a_unit_survives_its_journey_to_a_worker():
    unit = Unit("shard", "000001", upstream=("u", "v"), clips=("a", "b"))
    assert Unit.from_json(unit.to_json()) == unit


def test_clips_are_taken_sixty_four_at_a_time_and_no_clips_are_a_unit_too():
    upstream = str(Name("v" * 16, "p" * 16))
    assert [len(units.part_names(upstream, clips, "d")) for clips in (0, 1, 64, 65, 200)] == [1, 1, 1, 2, 4]


def test_a_video_is_incomplete_until_all_its_parts_are_there():
    upstream = Name("v" * 16, "p" * 16)
    parts = units.part_names(str(upstream), 130, "d")
    assert units.incomplete([upstream], [], "d") == [(str(upstream), set())]
    assert units.incomplete([upstream], parts[:2], "d") == [(str(upstream), {0, 1})]
    assert units.incomplete([upstream], parts, "d") == []
    assert units.incomplete([upstream], parts, "other settings") == [(str(upstream), set())]


def test_results_of_other_settings_are_stale():
    upstream = Name("v" * 16, "p" * 16)
    parts = units.part_names(str(upstream), 10, "d")
    assert units.stale([upstream], parts, "d") == []
    assert units.stale([upstream], parts, "e") == parts
    assert units.stale([], parts, "d") == parts
