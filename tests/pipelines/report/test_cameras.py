"""The report's table of camera statuses."""

import numpy as np
import pyarrow as pa

from pipelines.report.cameras import statuses, valid_share


def test_failed_checks_are_counted_without_their_values():
    clips = pa.table(
        {
            "camera_status": ["suspect", "suspect", "skipped:no video", "ok", "suspect", None],
            "camera_why": ["inliers 0, spike 3.87", "inliers 7, focal length not observable", None, None, "inliers 1", None],
        }
    )
    kept = np.array([True, True, True, True, False, True])
    rows = {row["status"]: row for row in statuses(clips, kept)}
    assert {name: row["count"] for name, row in rows.items()} == {"ok": 1, "suspect": 2, "skipped": 1}
    assert rows["suspect"]["why"] == ["inliers (2)", "spike (1)", "focal length not observable (1)"]
    assert rows["skipped"]["why"] == ["no video (1)"]
    assert rows["ok"]["percent"] == 25.0


def test_the_valid_share_counts_spans_by_time_and_old_clips_by_status():
    clips = pa.table(
        {
            "camera_status": ["ok", "ok_part", "suspect", None, "ok"],
            "camera_valid_share": [None, 0.5, 0.0, None, 1.0],
            "start_s": [0.0, 6.0, 10.0, 0.0, 0.0],
            "end_s": [6.0, 10.0, 12.0, 6.0, 6.0],
        }
    )
    kept = np.array([True, True, True, True, False])
    assert valid_share(clips, kept) == round(100 * 8 / 12, 1)
    assert valid_share(clips, ~kept & False) is None
