"""Where everything lies under OUT, the folder or s3:// prefix that a run writes.

    README.md                         the dataset card: what is here and how to read it
    dataset.json                      versions, recipe, counts, and the list of committed shards
    index.json                        the committed shards and how many clips each has, for `wids`
    report.html, preview/             the report, and the mp4s that it plays
    shards/000123.tar                 <clip_id>.json, <clip_id>.mp4 and <clip_id>.camera.npz of each clip, in the plan's order
    shards/000123.parquet             the index of that tar, and its commit: a tar without an index does not count
    shards/plan-000.parquet           which clip goes into which shard; never changed
    sources/<name>.parquet            ids of listed sources by their bytes (`pipelines.source_manifest`)
    videos/<unit>.parquet             one row a source
    clips/<phase>/<unit>.parquet      clip_id and the columns that the phase adds: the commit of the unit
    clips/superseded/<unit>.parquet   clips whose source changed before they were stored
    clips/duplicates/<unit>.parquet   a source's clips that repeat a clip of another source (`pipelines.near_duplicates`)
    duplicates.json                   what clips/duplicates was made from
    sidecar/thumbs/<unit>.parquet     three small JPEGs a clip
    sidecar/signals/<unit>.parquet    motion and luma over time, the static mask and the fingerprint of a source
    sidecar/camera/<unit>.parquet     a clip's camera.npz, in px of its source
    sidecar/chunks/<unit>.npz         what a chunk of a long source measured, until the source is committed
    sidecar/made/<video_id>.mp4       a synthetic video, accepted or not
    sidecar/answers/                  a VLM's replies, by prompt
    sidecar/embeddings/<model>/<video_id>.npz    vectors of captions, by the hash of the text
    segments/<folder>/                files of many units in one, once a folder of them is packed (`pipelines.unit_files`)
    manifests/000001.json             which segments count
    dead/<phase>/<unit>.json          what is known about sources and clips that failed for good
    logs/<unit>.txt                   the traceback of a unit that failed unexpectedly
    progress.json                     how far the current run is, or the last one came (`pipelines.progress`)
    lock.json                         the run that writes here now

A unit is what commits at once: a chunk, a source, at most 64 clips of a source, or a shard.
"""

from curation.storage import join


class OutputFolder:
    """The paths under one output. `uri` is normal (`storage.normal`)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def card(self) -> str:
        return join(self.uri, "README.md")

    @property
    def dataset(self) -> str:
        return join(self.uri, "dataset.json")

    @property
    def wids_index(self) -> str:
        return join(self.uri, "index.json")

    @property
    def report(self) -> str:
        return join(self.uri, "report.html")

    @property
    def lock(self) -> str:
        return join(self.uri, "lock.json")

    @property
    def progress(self) -> str:
        return join(self.uri, "progress.json")

    @property
    def duplicates(self) -> str:
        return join(self.uri, "duplicates.json")

    @property
    def previews(self) -> str:
        return join(self.uri, "preview")

    @property
    def videos(self) -> str:
        return join(self.uri, "videos")

    @property
    def sources(self) -> str:
        return join(self.uri, "sources")

    @property
    def shards(self) -> str:
        return join(self.uri, "shards")

    @property
    def logs(self) -> str:
        return join(self.uri, "logs")

    @property
    def segments(self) -> str:
        return join(self.uri, "segments")

    @property
    def manifests(self) -> str:
        return join(self.uri, "manifests")

    @property
    def dead(self) -> str:
        return join(self.uri, "dead")

    @property
    def answers(self) -> str:
        return self.sidecars("answers")

    @property
    def embeddings(self) -> str:
        return self.sidecars("embeddings")

    @property
    def made_videos(self) -> str:
        return self.sidecars("made")

    def clips(self, phase: str) -> str:
        return join(self.uri, "clips", phase)

    def sidecars(self, kind: str) -> str:
        return join(self.uri, "sidecar", kind)

    def video(self, unit: str) -> str:
        return join(self.videos, f"{unit}.parquet")

    def clip_rows(self, phase: str, unit: str) -> str:
        return join(self.clips(phase), f"{unit}.parquet")

    def sidecar(self, kind: str, unit: str) -> str:
        return join(self.sidecars(kind), f"{unit}.parquet")

    def chunk(self, unit: str) -> str:
        return join(self.sidecars("chunks"), f"{unit}.npz")

    def made_video(self, video_id: str) -> str:
        return join(self.made_videos, f"{video_id}.mp4")

    def segment(self, folder: str, name: str) -> str:
        return join(self.segments, folder, f"{name}.parquet")

    def segment_units(self, folder: str, name: str) -> str:
        return join(self.segments, folder, f"{name}.units.parquet")

    def manifest(self, number: int) -> str:
        return join(self.manifests, f"{number:06d}.json")

    def dead_letter(self, phase: str, unit: str) -> str:
        return join(self.dead, phase, f"{unit}.json")

    def tar(self, shard: str) -> str:
        return join(self.shards, f"{shard}.tar")

    def shard_index(self, shard: str) -> str:
        return join(self.shards, f"{shard}.parquet")

    def plan(self, number: int) -> str:
        return join(self.shards, f"plan-{number:03d}.parquet")

    def preview(self, name: str) -> str:
        return join(self.previews, name)

    def log(self, unit: str) -> str:
        return join(self.logs, f"{unit}.txt")
