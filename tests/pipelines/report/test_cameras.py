"""The report's table of camera statuses."""

import numpy as np
import pyarrow as pa

from pipelines.report.cameras import statuses


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
