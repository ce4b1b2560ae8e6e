from dataclasses import FrozenInstanceError, replace

import pytest

from operators.op import fuse_ops
from pipelines import chains, recipes
from pipelines.recipes import Recipe
from pipelines.setting_comments import to_commented_yaml


@pytest.mark.parametrize("name", sorted(recipes.BUILT_IN))
def test_a_recipe_survives_yaml(name, tmp_path):
    recipe = recipes.load(name)
    assert recipe.name == name
    (tmp_path / "r.yaml").write_text(to_commented_yaml(recipe))
    assert recipes.load(str(tmp_path / "r.yaml")) == recipe


def test_a_file_need_only_say_what_differs(tmp_path):
    (tmp_path / "mine.yaml").write_text("partition:\n  scenes:\n    clip_s: 8\n")
    recipe = recipes.load(str(tmp_path / "mine.yaml"))
    assert (recipe.name, recipe.partition.scenes.clip_s) == ("mine", 8.0)
    assert recipe.shard == Recipe().shard


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partition: {scenes: {clip_secs: 5}}", r"unknown key partition\.scenes\.clip_secs; did you mean clip_s\?"),
        ("colour: red", "unknown key colour; known are name, partition, score, annotate, caption, relate, shard, synth"),
        ("partition: {scenes: {clip_s: long}}", r"partition\.scenes\.clip_s must be float, not 'long'"),
        ("shard: {clips_per_shard: 2.5}", r"shard\.clips_per_shard must be int, not 2\.5"),
        ("shard: {encoding: {fps: yes}}", r"shard\.encoding\.fps must be float or null, not True"),
        ("shard: {clips_per_shard: 0}", "clips_per_shard must be at least 1, not 0"),
        ("shard: {encoding: {codec: libx999}}", r"codec 'libx999' is not an encoder of this build"),
        ("partition: 5", "partition must be a mapping of settings, not 5"),
        ("- a", "a recipe must be a mapping"),
        ("a: [", "not valid YAML"),
        ("name: caf\udce9", r"a recipe must be UTF-8 text \(unexpected end of data at byte 9\)"),
    ],
)
def test_a_mistake_is_one_clear_line_with_the_file(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=words) as caught:
        recipes.load(str(tmp_path / "bad.yaml"))
    assert str(caught.value).startswith(str(tmp_path / "bad.yaml"))
    assert "\n" not in str(caught.value)


def test_neither_file_nor_name():
    known = "demo, engine, gamecraft2, laptop, rehearsal, smoke"
    with pytest.raises(ValueError, match=f"smok: neither a recipe file nor one of {known}"):
        recipes.load("smok")


def test_a_recipe_is_frozen():
    with pytest.raises(FrozenInstanceError):
        recipes.laptop().name = "x"


def test_a_phase_is_named_by_its_settings_and_those_before_it():
    ours = recipes.laptop()
    limits = replace(ours, score=replace(ours.score, luminance=replace(ours.score.luminance, min_mean=30.0)))
    assert limits.digest("partition") == ours.digest("partition")
    assert limits.digest("score") != ours.digest("score")
    assert limits.digest("shard") != ours.digest("shard")
    assert replace(ours, name="other").digest("shard") == ours.digest("shard")


def test_differences_name_the_settings():
    a, b = recipes.settings_of(recipes.laptop()), recipes.settings_of(recipes.smoke())
    assert "shard.encoding.max_width: 864, now 432" in recipes.differences(a, b)
    assert recipes.differences(a, a) == []


def test_the_length_of_chunks_names_nothing():
    ours = recipes.laptop()
    other = replace(ours, partition=replace(ours.partition, chunk_s=60.0))
    assert [other.digest(phase) for phase in recipes.CLIP_PHASES] == [ours.digest(phase) for phase in recipes.CLIP_PHASES]
    assert recipes.settings_of(other) == recipes.settings_of(ours)
    assert recipes.from_mapping(Recipe, {"partition": {"chunk_s": None}}).partition.chunk_s is None
    with pytest.raises(ValueError, match=r"chunk_s must be null or at least 1, not 0\.5"):
        recipes.from_mapping(Recipe, {"partition": {"chunk_s": 0.5}})


def test_a_recipe_of_the_other_kind_is_named_as_such(tmp_path):
    (tmp_path / "r.yaml").write_text("train: {batch: 2}\n")
    with pytest.raises(ValueError, match=r"r\.yaml: is a training recipe, for `gamecraft train`"):
        recipes.load(str(tmp_path / "r.yaml"))
    (tmp_path / "r.yaml").write_text("score: {luminance: {min_mean: 3}}\n")
    kind = type("TrainRecipe", (), {})
    with pytest.raises(ValueError, match=r"r\.yaml: is a curation recipe, for `gamecraft curate`"):
        recipes.load(str(tmp_path / "r.yaml"), {}, kind)


def test_on_a_cluster_the_partition_of_gamecraft2_shares_gpus_and_stays_one_step():
    recipe = recipes.gamecraft2()
    for chain in (chains.partition(recipe), chains.scan(recipe)):
        assert len(fuse_ops(chain)) == 1
        assert {op.num_gpus for op in chain} == {0.25}
    assert {op.num_gpus for op in chains.partition(recipes.laptop())} == {0.0}
    with pytest.raises(ValueError, match=r"gpus must be 0 to 1, or a whole number, not 1\.5"):
        recipes.Partition(gpus=1.5)


def test_a_digest_is_computed_once_and_changes_no_recipe(monkeypatch):
    calls, real = [], recipes.settings_of
    monkeypatch.setattr(recipes, "settings_of", lambda recipe: calls.append(recipe) or real(recipe))
    recipe, same = recipes.smoke(), recipes.smoke()
    assert recipe.digest("partition") == recipe.digest("partition") == same.digest("partition")
    assert len(calls) == 2
    assert recipe == same
    assert hash(recipe) == hash(same)
    assert real(recipe) == real(recipes.smoke())
    other = replace(recipe, partition=replace(recipe.partition, actions=replace(recipe.partition.actions)))
    assert other.digest("partition") == recipe.digest("partition")
    longer = replace(recipe, partition=replace(recipe.partition, scenes=replace(recipe.partition.scenes, min_clip_s=1.5)))
    assert longer.digest("partition") != recipe.digest("partition")
