import cv2
import numpy as np
import pytest

from bench import quality
from bench.quality import FootageClip, RatedVersion
from curation.quality.embedded_backend import WEIGHTS, load_weights
from curation.quality.features import patch_features

RNG = np.random.default_rng(0)


def version(clip, level, coded) -> RatedVersion:
    patches = cv2.resize(RNG.integers(60, 200, (16, 24), np.uint8), (384, 64), interpolation=cv2.INTER_CUBIC)
    patches = patches.reshape(64, 2, 3, 64).transpose(1, 2, 0, 3)
    features = [patch_features(patches[0]), patch_features(patches[1][:2])]
    return RatedVersion(clip, clip.split("/")[0], "vp9", level, level / 5, 0.1, np.array(coded), features, {"GMSD": -level})


def test_the_networks_input_is_read_as_it_was_stored(tmp_path):
    versions = [version("doom/0", 0.0, [np.nan, np.nan]), version("maze/1", 0.4, [0.3, 0.5])]
    quality._save_versions(tmp_path / "a.npz", versions)
    weights = load_weights(WEIGHTS)
    for one, again in zip(versions, quality._load_versions(tmp_path / "a.npz"), strict=True):
        assert [len(features_PF) for features_PF in again.features] == [3, 2]
        assert (again.clip, again.level, again.scores) == (one.clip, one.level, one.scores)
        for stream in (False, True):
            assert again.quality(weights, stream) == one.quality(weights, stream)


def test_the_streams_quantiser_counts_only_where_it_is_asked_for():
    weights, coarse = load_weights(WEIGHTS), version("maze/1", 0.4, [0.9, 0.9])
    without, with_stream = (coarse.quality(weights, stream) for stream in (False, True))
    assert without.iqa > with_stream.iqa + 0.05
    assert with_stream.iqa_fault == "compressed"


@pytest.mark.parametrize(("name", "look"), [("minetest01/0", "minetest"), ("build_pillar_0/2", "build"), ("bikes/0", "bikes")])
def test_a_look_is_the_first_word_of_a_name(name, look):
    assert FootageClip(name, np.empty(0), np.empty(0), 25.0).look == look


def test_the_benchmark_knows_what_the_quantiser_of_a_codec_says():
    luma = RNG.integers(0, 256, (8, 64, 96), np.uint8)
    clip = FootageClip("doom0/0", luma, np.empty(0), fps=4.0)
    pictures, coded = quality._damaged_pictures(clip, quality.KINDS["mpeg4"], 0.3, seed=0)
    assert pictures.shape == (2, 64, 96)
    assert coded == pytest.approx([0.3, 0.3], abs=0.03)
    for kind, level in (("mpeg4", 0.0), ("blur", 0.3)):
        assert np.isnan(quality._damaged_pictures(clip, quality.KINDS[kind], level, seed=0)[1]).all()
