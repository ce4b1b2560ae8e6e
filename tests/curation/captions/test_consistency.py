from dataclasses import fields

import jsonschema
import pytest

from curation.captions import consistency
from curation.captions.consistency import Verdicts, criteria, prompt, verdict

ABSENT = {"present": False, "frames": [], "evidence": ""}


def answers(**met):
    return dict.fromkeys(criteria(), ABSENT) | met


def seen(*frames, evidence="an inventory covers the view"):
    return {"present": True, "frames": list(frames), "evidence": evidence}


def test_every_criterion_has_a_rule_and_every_rule_a_criterion():
    assert [rule.name for rule in fields(Verdicts)] == list(criteria())


def test_the_question_names_every_criterion_its_version_and_what_was_measured():
    asked = prompt("The camera turns left.", [b"", b""], ["Frame 1:", "Frame 2:"])
    assert all(f"- {name}: {question}" in asked.text for name, question in criteria().items())
    assert asked.text.startswith("(consistency question 1) ")
    assert "The camera turns left." in asked.text
    jsonschema.validate(answers(menu=seen(2)), asked.schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answers(menu=seen(3)), asked.schema)  # there are two frames


def test_a_criterion_that_is_met_rejects_with_its_evidence():
    found = verdict(answers(menu=seen(2, 1)), Verdicts())
    assert found.reject == "menu: an inventory covers the view (frame 1, 2)"
    assert found.flags == ("menu",)


def test_a_clean_clip_passes():
    assert verdict(answers(), Verdicts()) == consistency.Verdict((), None)


def test_what_is_only_flagged_does_not_reject_and_what_is_ignored_is_not_even_flagged():
    told = answers(watermark=seen(1), menu=seen(1))
    assert verdict(told, Verdicts(menu="ignore")) == consistency.Verdict(("watermark",), None)


@pytest.mark.parametrize("bare", [seen(1, evidence=" "), seen(), {"present": False, "frames": [1], "evidence": "a menu"}])
def test_a_yes_without_frames_or_evidence_counts_for_nothing(bare):
    assert verdict(answers(menu=bare), Verdicts()).reject is None


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="menu must be one of reject, flag, ignore, not 'drop'"):
        Verdicts(menu="drop")
