"""Long inputs: a length of the job's own, truncation at either end, pairs, the tokenizer's model_max_length."""

import json
import shutil

import pytest
import transformers

from batchloom import models
from batchloom.models.errors import CheckpointError
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks import TASKS
from batchloom.pipelines.tasks.length import InputLength
from batchloom.pipelines.tasks.pairs import shares

NLI = {"id2label": {0: "contradiction", 1: "entailment"}, "label2id": {"contradiction": 0, "entailment": 1}}
MASKED = "<mask> "
FILES = ("vocab.json", "merges.txt")
LABELS = {"candidate_labels": ["a"], "hypothesis_template": "{}"}  # short: these tokenizers know few words
CASES = {  # options that a task needs; how it treats longer inputs
    "summarization": ("BartForConditionalGeneration", {}, "error"),
    "text-generation": ("BloomForCausalLM", {}, "error"),
    "text2text-generation": ("BartForConditionalGeneration", {}, "error"),
    "conversational": ("BlenderbotForConditionalGeneration", {}, "left"),
    "zero-shot-classification": ("BartForSequenceClassification", LABELS, "right"),
    "text-classification": ("BartForSequenceClassification", {}, "right"),
    "token-classification": ("BloomForTokenClassification", {}, None),
    "question-answering": ("BartForQuestionAnswering", {}, None),
    "fill-mask": ("BartForConditionalGeneration", {}, "error"),
    "feature-extraction": ("BartModel", {}, "right"),
    "perplexity": ("BartForCausalLM", {}, None),
    "scoring": ("BloomForCausalLM", {"target_column": "target"}, "error"),
}
SHORT = {"max_new_tokens": 3, "num_beams": 1}
MOST = 24


def columns_of(task, texts):
    if task == "fill-mask":
        texts = [f"{MASKED}{text} <mask>" for text in texts]
    if task == "scoring":
        return {"text": texts, "target": ["A zone."] * len(texts)}
    return {"question": ["Where?"] * len(texts), "context": texts} if task == "question-answering" else {"text": texts}


@pytest.fixture
def ask_long(ask, make_checkpoint):
    def run(task, texts, **options):
        architecture, needed, _ = CASES[task]
        model = make_checkpoint(architecture, **(NLI if task == "zero-shot-classification" else {}))
        generation = SHORT if task in ("summarization", "conversational") or "generation" in task else {}
        return ask(task, model, columns_of(task, texts), options={**needed, **options}, generation=generation)

    return run


def test_every_task_is_tried_here():
    assert set(CASES) <= set(TASKS)


@pytest.mark.parametrize("task", CASES)
def test_a_longer_input_is_an_error_or_truncated_as_the_job_says(ask_long, error_kinds, task):
    texts = ["The river.", "river unit " * 30]
    by_default = ask_long(task, texts, max_length=MOST)
    refused = ask_long(task, texts, max_length=MOST, truncation="error")
    assert error_kinds(refused) == [None, "too_long"]
    assert (
        f"{MOST} are taken at most" in (message := refused["error"][1]["message"].as_py()) or "leaves room" in message
    )
    left = ask_long(task, texts, max_length=MOST, truncation="left")
    assert error_kinds(left) == [None, None]
    assert 0 < left["num_input_tokens"][1].as_py() <= MOST
    assert left["num_truncated_tokens"][1].as_py() > 30
    if task != "conversational":
        right = ask_long(task, texts, max_length=MOST, truncation="right")
        assert right["num_input_tokens"][1] == left["num_input_tokens"][1]
    default = CASES[task][2]
    expected = {"error": refused, "left": left}.get(default)
    if default == "right":
        expected = right
    if expected is not None:
        assert by_default.to_pylist()[1]["num_truncated_tokens"] == expected.to_pylist()[1]["num_truncated_tokens"]
    else:
        assert by_default["num_truncated_tokens"].to_pylist() == [0, 0]
        assert by_default["num_input_tokens"][1].as_py() > MOST


def test_a_mask_that_was_cut_off_is_said_and_nothing_is_counted(ask, make_checkpoint):
    model = make_checkpoint("BartForConditionalGeneration")
    texts = ["river " * 40 + "<mask>"]
    (row,) = ask("fill-mask", model, {"text": texts}, options={"max_length": 9, "truncation": "right"}).to_pylist()
    assert row["error"]["message"] == "what is left of the text has no <mask>, so nothing is to be filled"
    assert row["num_input_tokens"] == row["num_truncated_tokens"] == 0


def test_the_newest_turns_are_never_left_out(ask_long):
    with pytest.raises(ConfigError, match="would leave out the newest turns"):
        ask_long("conversational", ["a"], truncation="right")


def test_chunks_and_truncation_exclude_each_other(ask_long):
    with pytest.raises(ConfigError, match="long_documents: chunk reads texts whole"):
        ask_long("summarization", ["a"], truncation="left", long_documents="chunk")


@pytest.mark.parametrize(
    ("length", "message"),
    [(129, "is 129, and the model has 128 positions"), (2, "puts 2 special tokens .* must be at least 3"), (0, "is 0")],
)
def test_a_length_that_no_text_can_have_is_refused(ask_long, length, message):
    with pytest.raises(ConfigError, match=message):
        ask_long("text-classification", ["a"], max_length=length)


def test_pairs_are_for_classification(ask, make_checkpoint):
    with pytest.raises(ConfigError, match="summarization reads no pairs of texts"):
        ask("summarization", make_checkpoint("BartForConditionalGeneration"), {"text": ["a"]}, text_pair_column="b")


# As transformers does it


def with_length(model, folder, length, **settings):
    """A copy of a checkpoint whose tokenizer has a model_max_length."""
    copy = folder / f"length-{length}"
    shutil.copytree(model, copy)
    path = copy / "tokenizer_config.json"
    found = json.loads(path.read_text()) if path.exists() else {"tokenizer_class": "BartTokenizer"}
    path.write_text(json.dumps(found | {"model_max_length": length} | settings))
    return str(copy)


def pipeline_of(task, model, **settings):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    auto = {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "feature-extraction": transformers.AutoModel,
    }[task]
    return transformers.pipeline(task, model=auto.from_pretrained(model), tokenizer=tokenizer, **settings)


@pytest.mark.parametrize("architecture", ["BartForSequenceClassification", "BloomForSequenceClassification"])
def test_the_tokenizers_length_is_respected_where_texts_are_truncated(
    ask, equal, make_checkpoint, make_sentences, tmp_path, architecture
):
    model = with_length(make_checkpoint(architecture, num_labels=4), tmp_path, 16)
    texts = make_sentences(8, seed=41, longest=30)
    pipeline = pipeline_of("text-classification", model)
    expected = [pipeline(text, truncation=True, top_k=None) for text in texts]
    part = ask("text-classification", model, {"text": texts})
    equal("text-classification, truncated", part["scores"].to_pylist(), expected, 1e-5)
    lengths = [len(ids) for ids in models.load_tokenizer(model).encode_batch(texts)]
    assert part["num_truncated_tokens"].to_pylist() == [max(length - 16, 0) for length in lengths]
    assert max(lengths) > 16


@pytest.mark.parametrize("side", ["right", "left"])
def test_either_end_is_truncated_as_by_the_tokenizer(ask, equal, make_checkpoint, make_sentences, tmp_path, side):
    model = with_length(make_checkpoint("BartForSequenceClassification", num_labels=4), tmp_path, 100)
    texts = make_sentences(8, seed=42, longest=30)
    pipeline = pipeline_of("text-classification", model)
    pipeline.tokenizer.truncation_side = side
    expected = [pipeline(text, truncation=True, max_length=13, top_k=None) for text in texts]
    part = ask("text-classification", model, {"text": texts}, options={"truncation": side, "max_length": 13})
    equal("text-classification, truncated", part["scores"].to_pylist(), expected, 1e-5)


@pytest.mark.parametrize("architecture", ["BartForSequenceClassification", "BloomForSequenceClassification"])
@pytest.mark.parametrize(
    "truncation", [{}, {"truncation": "right", "max_length": 17}, {"truncation": "left", "max_length": 16}]
)
def test_pairs_are_classified_as_by_the_pipeline(
    ask, equal, make_checkpoint, make_sentences, tmp_path, architecture, truncation
):
    """Texts of 1 to 30 words with others of 1 to 12: the longer is truncated first, then both."""
    model = with_length(make_checkpoint(architecture, num_labels=3), tmp_path, 100)
    firsts = [*make_sentences(12, seed=43, longest=30), "a"]
    seconds = [*make_sentences(12, seed=44, longest=12), "river " * 40]
    pipeline = pipeline_of("text-classification", model, top_k=None)
    side, length = truncation.get("truncation", "right"), truncation.get("max_length", 100)
    pipeline.tokenizer.truncation_side = side
    expected = [
        pipeline({"text": first, "text_pair": second}, truncation=True, max_length=length)
        for first, second in zip(firsts, seconds, strict=True)
    ]
    expected = [one[0] if isinstance(one[0], list) else one for one in expected]
    columns = {"premise": firsts, "hypothesis": seconds}
    names = {"text_column": "premise", "text_pair_column": "hypothesis"}
    part = ask("text-classification", model, columns, options=truncation, **names)
    equal("text-classification, pairs", part["scores"].to_pylist(), expected, 1e-5)


def test_zero_shot_truncates_the_text_at_the_tokenizers_length(ask, equal, make_checkpoint, make_sentences, tmp_path):
    model = with_length(make_checkpoint("BartForSequenceClassification", **NLI), tmp_path, 24)
    texts, own = make_sentences(6, seed=46, longest=30), {"hypothesis_template": "{}", "multi_label": True}
    pipeline = transformers.pipeline(
        "zero-shot-classification", model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(model)
    )
    # One label: of several, the pipeline truncates the text beside each by itself, and we beside the longest.
    expected = [pipeline(text, ["river"], **own)["scores"] for text in texts]
    part = ask("zero-shot-classification", model, {"text": texts}, options={"candidate_labels": ["river"], **own})
    equal("zero-shot-classification, truncated", part["scores"].to_pylist(), expected, 1e-5)
    assert max(part["num_truncated_tokens"].to_pylist()) > 0


def test_a_pair_with_a_null_or_nothing_is_an_error(ask, make_checkpoint, error_kinds):
    model = make_checkpoint("BartForSequenceClassification", num_labels=3)
    columns = {"text": ["a", None, "a", "river " * 90], "other": [None, "b", " ", "river " * 90]}
    part = ask("text-classification", model, columns, text_pair_column="other", options={"truncation": "error"})
    assert error_kinds(part) == ["null_text", "null_text", "empty_text", "too_long"]
    assert "'other'" in part["error"][0]["message"].as_py()


@pytest.mark.parametrize("room", [5, 6, 7])
def test_what_stays_of_a_pair_is_what_the_library_keeps(byte_bpe, room):
    from tokenizers import ByteLevelBPETokenizer

    plain, cutting = (ByteLevelBPETokenizer(*(str(byte_bpe / name) for name in FILES)) for _ in range(2))
    cutting.enable_truncation(room)
    for num_first in range(1, 10):
        for num_second in range(1, 10):
            texts = "zq" * num_first, "qz" * num_second
            kept = cutting.encode(*texts).sequence_ids
            whole = [len(plain.encode(text).ids) for text in texts]
            expected = whole if sum(whole) <= room else shares(*whole, room)
            assert [kept.count(0), kept.count(1)] == list(expected)


def test_special_tokens_stay_where_a_text_is_cut():
    right, left = (InputLength(6, side).places(9, (1, 2)) for side in ("right", "left"))
    assert list(right) == [0, 1, 2, 3, 7, 8]
    assert list(left) == [0, 4, 5, 6, 7, 8]
    assert list(InputLength(6, None).places(9, (1, 2))) == list(range(9))


def test_embeddings_of_truncated_texts_are_the_pipelines(ask, equal, make_checkpoint, make_sentences, tmp_path):
    model = with_length(make_checkpoint("BartModel"), tmp_path, 16)
    texts = make_sentences(6, seed=45, longest=30)
    pipeline = pipeline_of("feature-extraction", model)
    expected = [pipeline(text, truncation=True, return_tensors=True)[0].mean(0).tolist() for text in texts]
    part = ask("feature-extraction", model, {"text": texts})
    equal("feature-extraction, truncated", part["embedding"].to_pylist(), expected, 2e-5)


@pytest.mark.parametrize("bad", [0, -1, "many", True])
def test_a_length_that_is_none_is_refused(make_checkpoint, tmp_path, bad):
    model = with_length(make_checkpoint("BartModel"), tmp_path, bad)
    with pytest.raises(CheckpointError, match="model_max_length = "):
        models.describe(model)


@pytest.mark.parametrize(("length", "expected"), [(1e30, None), (int(1e30), None), (512, 512), (512.0, 512)])
def test_an_endless_length_is_none(make_checkpoint, tmp_path, length, expected):
    model = with_length(make_checkpoint("BartModel"), tmp_path, length)
    assert models.describe(model).model_max_length == expected
