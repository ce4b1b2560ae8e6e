import pytest

from curation.cameras.camera import CameraFacts
from curation.cameras.checks import apply_checks
from curation.cameras.settings import CameraSettings, CheckSettings
from pipelines import recipes

GOOD = CameraFacts(
    "", model="general", focal_px=320.0, focal_source="clip", focal_error=0.001, focal_share=0.5, turn_deg=120.0,
    max_turn_deg=3.0, step_ratio=1.2, velocity_spike=0.4, tracks=350.0, tracks_min=200, track_length=20.0, static_share=0.02,
    registered=1.0, points=900,
    inliers_min=90, inlier_share=0.9, residual_px=0.4, residual_p95_px=0.7, map_disagreement=0.001,
    map_disagreement_deg=0.02, scale_links=60,
    outlier_coverage=0.05, vertical_run_s=0.1, parallax=0.8,
)  # fmt: skip
LIMITS = CheckSettings()


@pytest.mark.parametrize(("model", "status"), [("general", "ok"), ("rotation", "ok_rotation"), ("static", "ok_static")])
def test_a_good_clip_is_ok_by_its_model(model: str, status: str) -> None:
    assert apply_checks(GOOD._replace(model=model), LIMITS)[:2] == (status, None)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"registered": 0.9}, "registered 0.9"),
        ({"points": 50}, "points 50"),
        ({"parallax": 0.02}, "parallax 0.02"),
        ({"inliers_min": 5}, "inliers_min 5"),
        ({"inlier_share": 0.5}, "inlier_share 0.5"),
        ({"residual_px": 2.0}, "residual_px 2"),
        ({"residual_p95_px": 3.0}, "residual_p95_px 3"),
        ({"residual_px": float("nan")}, "residual_px nan"),
        ({"map_disagreement": 0.07}, "map_disagreement 0.07"),
        ({"map_disagreement_deg": 0.6}, "map_disagreement_deg 0.6"),
        ({"step_ratio": 9.0}, "step_ratio 9"),
        ({"scale_links": 3}, "scale_links 3"),
        ({"outlier_coverage": 0.5}, "outlier_coverage 0.5"),
        ({"vertical_run_s": 0.7}, "vertical_run_s 0.7"),
        ({"velocity_spike": 1.8}, "velocity_spike 1.8"),
        ({"max_turn_deg": 60.0}, "max_turn_deg 60"),
        ({"static_share": 0.8}, "static_share 0.8"),
        ({"focal_error": 0.1}, "focal_error 0.1"),
        ({"focal_error": None}, "focal_error unknown"),
        ({"focal_share": 5.0}, "focal_share 5.00"),
        ({"focal_source": "none"}, "focal length not observable"),
    ],
)
def test_each_check_makes_a_clip_suspect_and_says_which(wrong: dict[str, object], why: str) -> None:
    assert apply_checks(GOOD._replace(**wrong), LIMITS)[:2] == ("suspect", why)


def test_a_rotation_must_explain_most_points_of_every_pair() -> None:
    turn = GOOD._replace(model="rotation", rotation_residual_px=4.0)
    assert apply_checks(turn, LIMITS)[:2] == ("suspect", "rotation_residual_px 4")
    assert apply_checks(turn._replace(model="general"), LIMITS).status == "ok"


def test_all_missed_checks_are_listed() -> None:
    assert apply_checks(GOOD._replace(points=50, inliers_min=5), LIMITS).why == "points 50, inliers_min 5"


def test_a_pooled_focal_length_needs_no_error_of_its_own() -> None:
    assert apply_checks(GOOD._replace(focal_source="pooled", focal_error=0.0), LIMITS).status == "ok"


def test_few_tracks_are_low_texture_and_failures_stay() -> None:
    assert apply_checks(GOOD._replace(tracks=12.0), LIMITS)[:2] == ("low_texture", "tracks 12")
    assert apply_checks(GOOD._replace(status="failed:a cut 1.00 s in"), LIMITS).status == "failed:a cut 1.00 s in"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"backend": "glomap"}, "backend must be one of auto, vipe, klt, none, not 'glomap'"),
        ({"max_width": 80}, "max_width must be at least 160 px"),
        ({"fov_deg": 200.0}, "fov_deg must be between 20 and 150 degrees"),
    ],
)
def test_settings_name_the_value_and_the_remedy(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CameraSettings(**setting)  # type: ignore[arg-type]


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"checks\.min_points must not be negative, not -1"):
        CheckSettings(min_points=-1)


_OLD_KEYS = sorted(old for old in recipes.RENAMED if old.startswith("annotate.camera.checks."))


@pytest.mark.parametrize("old", _OLD_KEYS)
def test_a_limit_under_its_old_name_is_refused_with_the_new_one(old: str) -> None:
    *groups, key = old.split(".")
    data: dict[str, object] = {key: 1.0}
    for group in reversed(groups):
        data = {group: data}
    new = recipes.RENAMED[old]
    with pytest.raises(ValueError, match=rf"^{old} is called {new} now; rename it in the recipe$"):
        recipes.from_mapping(recipes.Recipe, data)
    for name in new.split(" and "):
        assert hasattr(LIMITS, name.removeprefix("annotate.camera.checks."))
