from pathlib import Path

import pytest

from bench import camera, camera_takes


def test_a_place_without_room_for_a_kind_of_take_gives_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(folder: Path, place: camera_takes.Place, kind: str, seed: int) -> list[str]:
        if kind == "keys":
            raise camera_takes.NoTake(f"{place.level}: no keys take in 12 tries")
        return [kind]

    monkeypatch.setattr(camera_takes, "record", record)
    takes = camera._record_takes(Path("takes"), camera_takes.Place("freedoom2", "MAP31", False), 5)
    assert takes == [kind for kind in camera_takes.KINDS if kind != "keys"]
    assert capsys.readouterr().out == "left out: MAP31: no keys take in 12 tries\n"
