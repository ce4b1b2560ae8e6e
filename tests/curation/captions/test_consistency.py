from dataclasses import fields

import jsonschema
import pytest

from curation.captions import consistency
from curation.captions.consistency import ConsistencySettings, consistency_prompt, criteria, judge

ABSENT = {"present": False, "frames": [], "evidence": ""}


def answers(**met):
    return dict.fromkeys(criteria(), ABSENT) | met


def seen(*frames, evidence="an inventory covers the view"):
    return {"present": True, "frames": list(frames), "evidence": evidence}


def test_every_criterion_has_a_rule_and_every_rule_a_criterion():
    assert [criterion.name for criterion in fields(ConsistencySettings)] == list(criteria())


def test_the_question_names_every_criterion_its_version_and_what_was_measured():
    question = consistency_prompt("The camera turns left.", [b"", b""], ["Frame 1:", "Frame 2:"])
    assert all(f"- {name}: {words}" in question.text for name, words in criteria().items())
    assert question.text.startswith("(consistency question 1) ")
    assert "The camera turns left." in question.text
    jsonschema.validate(answers(menu=seen(2)), question.schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answers(menu=seen(3)), question.schema)  # there are two frames


def test_a_criterion_that_is_met_rejects_with_its_evidence():
    verdict = judge(answers(menu=seen(2, 1)), ConsistencySettings())
    assert verdict.reject == "menu: an inventory covers the view (frame 1, 2)"
    assert verdict.flags == ("menu",)


def test_a_clean_clip_passes():
    assert judge(answers(), ConsistencySettings()) == consistency.Verdict((), None)


def test_what_is_only_flagged_does_not_reject_and_what_is_ignored_is_not_even_flagged():
    met = answers(watermark=seen(1), menu=seen(1))
    assert judge(met, ConsistencySettings(menu="ignore")) == consistency.Verdict(("watermark",), None)


@pytest.mark.parametrize("bare", [seen(1, evidence=" "), seen(), {"present": False, "frames": [1], "evidence": "a menu"}])
def test_a_yes_without_frames_or_evidence_counts_for_nothing(bare):
    assert judge(answers(menu=bare), ConsistencySettings()).reject is None


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="menu must be one of reject, flag, ignore, not 'drop'"):
        ConsistencySettings(menu="drop")
