"""Scoring against the reference's loss, with labels of -100 on the text that a target continues."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from batchloom.models import SinglePass, describe, load_model, load_tokenizer
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.replicas.single_pass import SinglePassReplica
from batchloom.pipelines.tasks import TaskSpec, create_task, targets
from batchloom.pipelines.tasks.base import TARGET_LENGTHS, request_table
from batchloom.pipelines.tasks.cures import advice

PER_TARGET = ("token_log_likelihoods", "num_scored_tokens")

ARCHITECTURES = [
    "BartForConditionalGeneration",
    "BlenderbotForConditionalGeneration",
    "BlenderbotSmallForConditionalGeneration",
    "BloomForCausalLM",
]


def loss_of(folder, architecture, text, target):
    """The reference's mean loss over a target's tokens, and how many these are; texts joined as users do it."""
    model, tokenizer = getattr(transformers, architecture).from_pretrained(folder).eval(), load_tokenizer(folder)
    if model.config.is_encoder_decoder:
        (source,), (labels,) = tokenizer.encode_batch([text]), tokenizer.encode_batch([target])
        inputs = {"input_ids": torch.tensor([source]), "labels": torch.tensor([labels])}
        num_tokens = len(labels)
    else:
        (whole,), (prompt,) = tokenizer.encode_batch([text + target]), tokenizer.encode_batch([text.rstrip()])
        labels = [-100] * len(prompt) + whole[len(prompt) :]
        inputs, num_tokens = (
            {"input_ids": torch.tensor([whole]), "labels": torch.tensor([labels])},
            len(whole) - len(prompt),
        )
    with torch.no_grad():
        return model(**inputs).loss.item(), num_tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_target_has_the_references_loss(ask, equal, make_checkpoint, make_sentences, architecture):
    model = make_checkpoint(architecture)
    texts = [*make_sentences(5, seed=50, longest=12), "The river: "]
    wanted = [" " + text for text in make_sentences(5, seed=51, longest=6)] + ["a zone"]
    part = ask("scoring", model, {"text": texts, "said": wanted}, options={"target_column": "said", "per_token": True})
    for row, text, target in zip(part.to_pylist(), texts, wanted, strict=True):
        loss, num_tokens = loss_of(model, architecture, text, target)
        equal("scoring", [-row["log_likelihood"] / num_tokens], [loss], 1e-5)
        assert row["num_scored_tokens"] == num_tokens == len(row["token_log_likelihoods"])
        assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert sum(row["token_log_likelihoods"]) == pytest.approx(row["log_likelihood"], abs=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_several_targets_a_row_and_the_best_of_them(ask, make_checkpoint, make_sentences, monkeypatch, architecture):
    monkeypatch.setattr(targets, "PIECE_TOKENS", 20)  # a row's targets are asked in pieces
    model, (text, other) = make_checkpoint(architecture), make_sentences(2, seed=52, longest=12)
    choices = [[" " + said for said in make_sentences(count, seed=53 + count, longest=7)] for count in (1, 6, 3, 6)]
    columns = {"text": [text, text, other, text], "choices": choices}
    for best_by in ("sum", "mean"):
        options = {"targets_column": "choices", "best_by": best_by, "per_token": True}
        for row, prompt, own in zip(
            ask("scoring", model, columns, options=options).to_pylist(), columns["text"], choices, strict=True
        ):
            expected = [loss_of(model, architecture, prompt, target) for target in own]
            assert row["num_scored_tokens"] == [count for _, count in expected]
            sums = [-loss * count for loss, count in expected]
            assert row["log_likelihoods"] == pytest.approx(sums, abs=2e-3)  # sums over up to 30 tokens of float32
            ranked = sums if best_by == "sum" else [-loss for loss, _ in expected]
            assert row["best"] == int(np.argmax(ranked))
            assert [len(tokens) for tokens in row["token_log_likelihoods"]] == row["num_scored_tokens"]


def test_equal_targets_have_one_score_and_the_first_of_them_is_the_best(ask, make_checkpoint, monkeypatch):
    """Their last bits differed by what was computed beside them, and the best was the 342nd of 1,000."""
    monkeypatch.setattr(targets, "PIECE_TOKENS", 20)
    columns = {"text": ["A river."], "said": [["a zone of units"] * 50 + ["a zone of the archive of the harbour"] * 50]}
    part = ask("scoring", make_checkpoint(ARCHITECTURES[0]), columns, options={"targets_column": "said"})
    (scores,) = part["log_likelihoods"].to_pylist()
    assert (len(set(scores[:50])), len(set(scores[50:])), len(scores)) == (1, 1, 100)
    assert part["best"][0].as_py() == scores.index(max(scores)) in (0, 50)


def test_rows_that_cannot_be_scored_say_why(ask, make_checkpoint, error_kinds):
    columns = {
        "text": ["A zone.", None, " ", "A zone.", "A zone."],
        "said": ["A unit.", "A unit.", "A unit.", None, " "],
    }
    part = ask("scoring", make_checkpoint("BloomForCausalLM"), columns, options={"target_column": "said"})
    assert error_kinds(part) == [None, "null_text", "empty_text", "null_text", "empty_text"]
    assert "'said'" in part["error"][3].as_py()["message"]
    columns = {"text": ["A zone."] * 5, "said": [["A unit."], [], None, ["A unit.", None], ["A unit.", ""]]}
    part = ask("scoring", make_checkpoint("BloomForCausalLM"), columns, options={"targets_column": "said"})
    assert error_kinds(part) == [None, "no_targets", "null_text", "null_text", "empty_text"]
    assert [part["error"][row].as_py()["message"] for row in (3, 4)] == [
        "target 1 of column 'said' is null in this row",
        "target 1 of column 'said' holds only white space in this row",
    ]
    assert part["best"].to_pylist() == [0, None, None, None, None]


@pytest.fixture(scope="module")
def banning(make_checkpoint, tmp_path_factory):
    """A BART whose bias bans the first token of " zone": the folder."""
    folder = tmp_path_factory.mktemp("banning")
    shutil.copytree(make_checkpoint("BartForConditionalGeneration"), folder, dirs_exist_ok=True)
    (ids,) = load_tokenizer(str(folder)).encode_batch([" zone"], add_special_tokens=False)
    model = transformers.BartForConditionalGeneration.from_pretrained(folder)
    model.final_logits_bias[0, ids[0]] = -torch.inf
    model.save_pretrained(folder)
    return str(folder)


def test_a_target_of_probability_0_is_null_beside_others(ask, banning, error_kinds):
    """Its row was lost, by an error about damaged weights."""
    columns = {"text": ["A river."] * 3, "said": [["A zone", "A unit"], ["A unit", "A zone", "A part"], ["A zone"]]}
    part = ask("scoring", banning, columns, options={"targets_column": "said", "per_token": True})
    assert error_kinds(part) == [None, None, "not_finite"]
    assert "A token of it has probability 0" in part["error"][2].as_py()["message"]
    rows = part.to_pylist()
    assert [one is None for one in rows[1]["log_likelihoods"]] == [False, True, False]
    assert (rows[0]["best"], rows[1]["best"] == 1) == (1, False)
    assert rows[0]["log_likelihoods"][1] == pytest.approx(rows[1]["log_likelihoods"][0], abs=1e-4)
    assert rows[0]["token_log_likelihoods"][0].count(None) == 1
    assert all(len(own) == count for own, count in zip(*(rows[0][name] for name in PER_TARGET), strict=True))
    loss, num_tokens = loss_of(banning, "BartForConditionalGeneration", "A river.", "A unit")
    assert rows[0]["log_likelihoods"][1] == pytest.approx(-loss * num_tokens, abs=1e-4)
    alone = ask("scoring", banning, {"text": ["A river."], "said": ["A zone"]}, options={"target_column": "said"})
    assert error_kinds(alone) == ["not_finite"]
    assert "log_likelihood" in alone["error"][0].as_py()["message"]
    whole = ask("perplexity", banning, {"text": ["A zone", "A unit"]}, options={"per_token": True})
    assert error_kinds(whole) == ["not_finite", None]
    assert "final_logits_bias" in whole["error"][0].as_py()["message"]


def test_logits_that_overflow_are_no_probability_of_0(make_checkpoint):
    """A finite logit less an infinite normalizer is -infinity too."""
    model = load_model(make_checkpoint("BartForConditionalGeneration"), dtype="float32", device="cpu")
    model.final_logits_bias[0, 7] = torch.inf
    (score,) = SinglePass(model).score([[5, 6]], [[8, 9]])
    assert score.log_probs.isnan().all()


def test_texts_that_are_too_long_are_cured_where_they_are_errors(make_checkpoint):
    """A retry with truncation answers them; encoder-decoders truncate texts, and no target is."""

    def said(architecture):
        checkpoint = describe(make_checkpoint(architecture), task="scoring")
        options = {"target_column": "said"}
        spec = TaskSpec(
            task="scoring", input=InputConfig(paths=()), options=options, generation={}, checkpoint=checkpoint
        )
        task = create_task(spec)
        return advice({"too_long": 1}, task.cures, task.settings())

    assert "--retry-errors=too_long --set task_options.truncation=left" in said("BartForCausalLM")
    assert "--retry-errors" not in said("BartForConditionalGeneration")


def test_a_target_is_never_truncated(ask, make_checkpoint, make_sentences, error_kinds):
    long = " ".join(make_sentences(12, seed=54))
    columns = {"text": ["A zone.", long, "A zone."], "said": [" A unit.", " A unit.", long]}
    options = {"target_column": "said"}
    translated = ask("scoring", make_checkpoint("BartForConditionalGeneration"), columns, options=options)
    assert error_kinds(translated) == [None, None, "too_long"]
    assert translated["num_truncated_tokens"][1].as_py() > 0
    decoder = make_checkpoint("BartForCausalLM")
    assert error_kinds(ask("scoring", decoder, columns, options=options)) == [None, "too_long", "too_long"]
    cut = ask("scoring", decoder, columns, options={**options, "truncation": "left"})
    assert error_kinds(cut) == [None, None, "too_long"]
    assert cut["num_input_tokens"][1].as_py() == 128  # as many as the decoder has positions
    message = cut["error"][2].as_py()["message"]
    assert "leaves no room for the text" in message
    assert "128 are taken at most" in message


def test_options_that_contradict_are_named(ask, make_checkpoint):
    def fails(match, **options):
        with pytest.raises(ConfigError, match=match):
            ask("scoring", make_checkpoint("BloomForCausalLM"), {"text": ["a"], "said": ["b"]}, options=options)

    fails("set one of target_column .* and targets_column")
    fails("set one of", target_column="said", targets_column="said")
    fails("the targets are in 'text', as input.text_column is", target_column="text")
    fails("best_by: is for targets_column", target_column="said", best_by="mean")
    fails("best_by: must be one of sum, mean or null; found 'max'", targets_column="said", best_by="max")
    classifier = make_checkpoint("BloomForSequenceClassification")
    with pytest.raises(ConfigError, match="scoring needs one of"):
        ask("scoring", classifier, {"text": ["a"], "said": ["b"]}, options={"target_column": "said"})


class Lengths:
    """A task that answers with the lengths of targets."""

    def output_fields(self):
        return []

    def ask_targets(self, model, sources, targets):  # noqa: ARG002
        return {"values": pa.array([[float(len(one)) for one in own] for own in targets], pa.list_(pa.float32()))}


def test_a_request_is_too_long_by_its_longest_target_and_not_by_their_number():
    model = SimpleNamespace(check_targets=lambda *_: None, stats=None)
    replica = SinglePassReplica(model, Lengths(), max_request_tokens=12)
    requests = request_table([(0, 0, [5] * 10 + [6] * 8), (1, 0, [5] * 10 + [6] * 3)])
    lengths = pa.array([[2, 2, 2, 2], [3]], TARGET_LENGTHS.type)
    requests = requests.append_column(TARGET_LENGTHS, lengths)
    requests = requests.append_column("bucket", pa.array([0, 0], pa.int32()))
    answered, refused = replica.answer(None, requests).to_pylist()
    assert answered["values"] == [2, 2, 2, 2]
    assert refused["error"]["message"].startswith("13 tokens in one request; engine.max_batch_tokens is 12")
