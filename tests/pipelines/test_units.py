from curation.schema import digest
from pipelines import units
from pipelines.units import Unit, UnitName


def test_a_name_says_its_video_and_its_part():
    name = UnitName("0123456789abcdef", digest("x"), 2, 5)
    assert UnitName.parse(f"{name}.parquet") == name
    assert "." not in str(name)


def test_a_unit_survives_its_journey_to_a_worker():
    unit = Unit("shard", "000001", upstream=("u", "v"), clips=("a", "b"))
    assert Unit.from_json(unit.to_json()) == unit


def test_clips_are_taken_sixty_four_at_a_time_and_no_clips_are_a_unit_too():
    upstream = str(UnitName("v" * 16, "p" * 16))
    assert [len(units.part_names(upstream, clips, "d")) for clips in (0, 1, 64, 65, 200)] == [1, 1, 1, 2, 4]


def test_a_video_is_incomplete_until_all_its_parts_are_there():
    upstream = UnitName("v" * 16, "p" * 16)
    parts = units.part_names(str(upstream), 130, "d")
    assert units.find_incomplete([upstream], [], "d") == [(str(upstream), set())]
    assert units.find_incomplete([upstream], parts[:2], "d") == [(str(upstream), {0, 1})]
    assert units.find_incomplete([upstream], parts, "d") == []
    assert units.find_incomplete([upstream], parts, "other settings") == [(str(upstream), set())]


def test_results_of_other_settings_are_stale():
    upstream = UnitName("v" * 16, "p" * 16)
    parts = units.part_names(str(upstream), 10, "d")
    assert units.find_stale([upstream], parts, "d") == []
    assert units.find_stale([upstream], parts, "e") == parts
    assert units.find_stale([], parts, "d") == parts
