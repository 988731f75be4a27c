"""answer_prefix: answers are those of the reference whose decoder, or prompt, was given the same tokens."""

import pyarrow as pa
import pytest
import torch
import transformers

from batchloom import models
from batchloom.models import load_tokenizer
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks import TaskSpec, create_task
from batchloom.pipelines.tasks.chunks import chunks
from batchloom.pipelines.tasks.generating import cut_by_positions

TITLES = ["The harbour", None, "Of", " ", "A river by a garden of the archive"]
BART, BLOOM = "BartForConditionalGeneration", "BloomForCausalLM"
BEAMS = {"num_beams": 3, "max_new_tokens": 10, "no_repeat_ngram_size": 2}


@pytest.fixture(scope="module")
def answer():
    """answer(architecture, folder, text, prefix, first=..., **options): what the reference says, prefix included."""
    loaded = {}

    def get(architecture, folder, text, prefix, first=(), **options):
        if folder not in loaded:
            loaded[folder] = getattr(transformers, architecture).from_pretrained(folder).eval()
        model, tokenizer = loaded[folder], load_tokenizer(folder)
        (ids,) = tokenizer.encode_batch([text])
        (given,) = tokenizer.encode_batch([prefix], add_special_tokens=False) if prefix else [[]]
        if model.config.is_encoder_decoder:
            start = model.generation_config.decoder_start_token_id
            start = model.generation_config.bos_token_id if start is None else start
            begun, shown = [start, *first, *given] if given else [start], 0
            options["decoder_input_ids"] = torch.tensor([begun])
        else:
            ids, shown = [*ids, *given], len(ids)
        with torch.no_grad():
            (tokens,) = model.generate(torch.tensor([ids]), **options).tolist()
        return tokenizer.decode_batch([tokens[shown:]])[0]

    return get


@pytest.mark.parametrize("generation", [{"max_new_tokens": 8}, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize(
    ("task", "architecture", "column"),
    [
        ("summarization", BART, "summary_text"),
        ("text2text-generation", BART, "generated_text"),
        ("conversational", "BlenderbotForConditionalGeneration", "reply"),
        ("conversational", "BlenderbotSmallForConditionalGeneration", "reply"),
        ("text-generation", BLOOM, "generated_text"),
    ],
)
def test_answers_begin_with_a_column_and_go_on_as_the_reference(
    ask, equal, answer, make_checkpoint, make_sentences, task, architecture, column, generation
):
    """A row in which the column is null or blank has no prefix."""
    folder, texts = make_checkpoint(architecture), make_sentences(5, seed=31, longest=12)
    columns = {"text": texts, "title": TITLES}
    part = ask(task, folder, columns, options={"answer_prefix": "{title}:"}, generation=generation)
    prefixes = [f"{title}:" if title and title.strip() else "" for title in TITLES]
    expected = [
        answer(architecture, folder, text, prefix, **generation) for text, prefix in zip(texts, prefixes, strict=True)
    ]
    equal(task, part[column].to_pylist(), expected)
    assert part[column][0].as_py().lower().lstrip().startswith("the harbour")
    # Counts: the prefix is read, what follows is the answer's output.
    plain = ask(task, folder, columns, generation=generation)
    tokenizer = load_tokenizer(folder)
    lengths = [
        len(tokenizer.encode_batch([prefix], add_special_tokens=False)[0]) if prefix else 0 for prefix in prefixes
    ]
    read = [
        row - before
        for row, before in zip(part["num_input_tokens"].to_pylist(), plain["num_input_tokens"].to_pylist(), strict=True)
    ]
    assert read == lengths
    assert max(part["num_output_tokens"].to_pylist()) <= generation["max_new_tokens"]


def test_a_forced_first_token_stands_before_the_prefix(ask, equal, answer, checkpoint, make_sentences):
    """As in bart-large-cnn, the decoder begins with </s> <s>; a job may force another first token, or none."""
    texts, prefix = make_sentences(4, seed=32, longest=12), "In short:"
    for forced, first in (({}, [0]), ({"forced_bos_token_id": 7}, [7]), ({"forced_bos_token_id": None}, [])):
        generation = {**BEAMS, **forced}
        part = ask(
            "summarization", checkpoint, {"text": texts}, options={"answer_prefix": prefix}, generation=generation
        )
        expected = [answer(BART, checkpoint, text, prefix, first, **BEAMS) for text in texts]
        equal("summarization", part["summary_text"].to_pylist(), expected)


def test_scores_are_of_generated_tokens_alone(ask, checkpoint, make_sentences):
    texts = make_sentences(3, seed=33)
    part = ask(
        "summarization",
        checkpoint,
        {"text": texts},
        options={"answer_prefix": "A zone of the", "scores": True},
        generation={"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 6},
    )
    for row in part.to_pylist():
        assert all(text.startswith("A zone of the") for text in row["summary_text"])
        assert sum(map(len, row["token_log_probs"])) == row["num_output_tokens"]


def test_a_prefix_follows_the_filled_prompt_of_a_decoder_alone(ask, equal, answer, make_checkpoint):
    """A column may stand in both templates; prompts and prefixes are tokenized apart."""
    folder = make_checkpoint(BLOOM)
    columns = {"title": ["Harbour", "River", None], "body": ["a zone", "a ledger", "a window"], "number": [1, 2, 3]}
    options = {"prompt_template": "{body} {title}", "answer_prefix": "{{{number}}} {title}"}
    part = ask("text-generation", folder, columns, options=options, generation={"max_new_tokens": 7})
    expected = [
        answer(BLOOM, folder, prompt, prefix, max_new_tokens=7)
        for prompt, prefix in (("a zone Harbour", "{1} Harbour"), ("a ledger River", "{2} River"))
    ]
    equal("text-generation", part["generated_text"].to_pylist(), [*expected, None])
    assert part["generated_text"][0].as_py().startswith("{1} Harbour")
    assert part["error"][2].as_py()["message"] == "column 'body, title' is null in this row"


@pytest.mark.parametrize("merge", ["join", "summarize"])
def test_the_summary_of_the_first_chunk_begins_with_it(ask, equal, answer, checkpoint, make_sentences, merge):
    """Where summaries are summarized again, so does that of the first chunk of each round, to the last."""
    long_text = " ".join(make_sentences(20, seed=21))
    options = {"long_documents": "chunk", "merge": merge, "answer_prefix": "{title}:"}
    columns = {"text": ["A river.", long_text, long_text], "title": ["Ledger", "Harbour", None]}
    part = ask("summarization", checkpoint, columns, options=options, generation=BEAMS)
    tokenizer = load_tokenizer(checkpoint)

    def summary(text, prefix):
        own = chunks(text, tokenizer, "", 128) if len(tokenizer.encode_batch([text])[0]) > 128 else [text]
        said = [answer(BART, checkpoint, one, prefix if n == 0 else "", [0], **BEAMS) for n, one in enumerate(own)]
        merged = " ".join(one.strip() for one in said if one.strip()) if len(said) > 1 else said[0]
        return summary(merged, prefix) if len(said) > 1 and merge == "summarize" else merged

    expected = [summary("A river.", "Ledger:"), summary(long_text, "Harbour:"), summary(long_text, "")]
    equal("summarization", part["summary_text"].to_pylist(), expected)
    assert expected[1].startswith("Harbour:")


def test_a_prefix_without_room_is_an_error_of_its_row(ask, make_checkpoint):
    folder = make_checkpoint(BART)
    columns = {"text": ["A river."] * 3, "title": ["Of", "harbour " * 200, "the garden of the archive"]}
    options = {"answer_prefix": "{title}"}
    part = ask("text2text-generation", folder, columns, options=options, generation={"max_new_tokens": 3})
    assert [error and error["kind"] for error in part["error"].to_pylist()] == [None, "refused_request", None]
    message = part["error"][1].as_py()["message"]
    assert "leaves no room for an answer: the decoder has 128 positions" in message
    part = ask("text2text-generation", folder, columns, options=options, generation={"max_length": 5})
    kinds = [error and error["kind"] for error in part["error"].to_pylist()]
    assert kinds == [None, "refused_request", "refused_request"]
    assert "of them the answer's prefix" in part["error"][2].as_py()["message"]
    assert part["num_input_tokens"].to_pylist()[1:] == [0, 0]


@pytest.mark.parametrize("merge", ["join", "summarize"])
def test_a_text_in_chunks_whose_first_summary_has_no_room_is_one_error(ask, checkpoint, make_sentences, merge):
    """The summaries of the other chunks were summarized, and the row was answered without its beginning."""
    options = {"long_documents": "chunk", "merge": merge, "answer_prefix": "{title}"}
    columns = {"text": [" ".join(make_sentences(20, seed=21))] * 2, "title": ["harbour " * 200, "Of"]}
    part = ask("summarization", checkpoint, columns, options=options, generation=BEAMS)
    assert [error and error["kind"] for error in part["error"].to_pylist()] == ["refused_request", None]
    assert part["summary_text"][0].as_py() is None


def test_rows_that_differ_in_their_prefix_alone_are_computed_apart(ask, checkpoint):
    columns = {"text": ["A river."] * 3, "title": ["Harbour", "Garden", "Harbour"]}
    part = ask("summarization", checkpoint, columns, options={"answer_prefix": "{title}"}, generation=BEAMS)
    first, second, third = part["summary_text"].to_pylist()
    assert first == third
    assert first.startswith("Harbour")
    assert second.startswith("Garden")


def create(folder, task="summarization", generation=None, **options):
    checkpoint = models.describe(folder, task=task)
    return create_task(
        TaskSpec(
            task=task, input=InputConfig(paths=()), options=options, generation=generation or {}, checkpoint=checkpoint
        )
    )


@pytest.mark.parametrize(
    ("task", "architecture", "prefix", "generation", "message"),
    [
        ("summarization", BART, "{a.b}", {}, r"answer_prefix: found \{a\.b\}. Write columns as plain \{name\}"),
        ("summarization", BART, "{", {}, "task_options.answer_prefix: "),
        ("summarization", BART, "", {}, "answer_prefix: is '', of which the tokenizer makes no token. Leave it out"),
        ("summarization", BART, 3, {}, "answer_prefix: must be a text or null; found 3"),
        ("text2text-generation", BART, "zone " * 200, {}, r"answer_prefix: has \d+ tokens, and leaves no .* 128 posit"),
        (
            "text2text-generation",
            BART,
            "A river of",
            {"max_length": 4},
            r"answer_prefix: has \d+ tokens, and generation.max_length = 4, which counts them",
        ),
        (
            "text2text-generation",
            BART,
            "A river of",
            {"min_new_tokens": 126, "max_new_tokens": 200},
            r"min_new_tokens: is 126, .* has \d+ tokens before them: the decoder has 128 positions, so no row",
        ),
        (
            "text-generation",
            "BartForCausalLM",
            "A river of",
            {"min_new_tokens": 126, "max_new_tokens": 200},
            r"min_new_tokens: is 126, and task_options.answer_prefix has \d+ tokens",
        ),
        ("text-generation", "BartForCausalLM", "A", {"min_new_tokens": 150, "max_new_tokens": 150}, "to 128 at most"),
        ("conversational", "BlenderbotForConditionalGeneration", "{text}:", {}, "names 'text', a column that may hold"),
        ("fill-mask", BART, "A", {}, "fill-mask does not know answer_prefix"),
    ],
)
def test_what_cannot_be_meant_is_refused(make_checkpoint, task, architecture, prefix, generation, message):
    with pytest.raises(ConfigError, match=message):
        create(make_checkpoint(architecture), task, generation, answer_prefix=prefix)


def test_its_columns_are_read_and_it_decides_answers(checkpoint):
    plain, prefixed = create(checkpoint), create(checkpoint, answer_prefix="{title} by {text}:")
    assert list(prefixed.input_columns()) == ["text", "title"]
    assert prefixed.input_columns()["text"] == plain.input_columns()["text"]
    assert plain.settings() != prefixed.settings()
    assert (prefixed.num_prefix_tokens, create(checkpoint, answer_prefix="In short:").num_prefix_tokens > 0) == (
        0,
        True,
    )


def test_plans_count_a_constant_prefix_among_the_positions(checkpoint):
    found = models.describe(checkpoint, task="summarization")
    assert cut_by_positions({"max_new_tokens": 120}, found, 0) is None
    note = cut_by_positions({"max_new_tokens": 120}, found, 10)
    assert note is not None
    assert "generation.max_new_tokens = 120 behind an answer_prefix of 10 tokens is more than the decoder's 128" in note
    assert cut_by_positions({"max_length": 129}, found, 10) is None


@pytest.mark.parametrize("compute_once", [True, False])
def test_a_prefix_that_is_no_utf8_makes_its_row_an_error_and_no_other(ask, make_checkpoint, compute_once):
    """It had an answer, as if its column were null, beside the error."""
    titles = pa.array([b"ok", b"\xff\xfe", None, b"ok"], pa.binary())
    columns = {"text": ["The river."] * 4, "title": titles}
    options = {"answer_prefix": "{title}:"}
    part = ask(
        "summarization", make_checkpoint(BART), columns, options=options, generation=BEAMS, compute_once=compute_once
    )
    rows = part.to_pylist()
    assert [row["error"] and row["error"]["kind"] for row in rows] == [None, "not_utf8", None, None]
    assert rows[1]["summary_text"] is rows[1]["finish_reason"] is None
    assert rows[1]["num_input_tokens"] == rows[1]["num_output_tokens"] == rows[1]["num_truncated_tokens"] == 0
    assert rows[0] == rows[3]
    assert not rows[2]["summary_text"].startswith("ok:")


@pytest.mark.parametrize("architecture", [BLOOM, "BartForCausalLM"])
def test_a_prefix_that_leaves_no_prompt_room_is_refused_by_the_plan(ask, make_checkpoint, architecture):
    options = {"answer_prefix": "In short a zone of the archive:"}
    with pytest.raises(ConfigError, match=r"answer_prefix: has \d+ tokens, and generation.max_length = 5"):
        ask(
            "text-generation",
            make_checkpoint(architecture),
            {"text": ["a"]},
            options=options,
            generation={"max_length": 5},
        )


def test_a_long_prompt_is_read_as_far_as_its_prefix_leaves_room(ask, make_checkpoint, make_sentences):
    """It was cut at the decoder's positions, and then refused, as the prefix stood behind it."""
    folder, long = make_checkpoint("BartForCausalLM"), " ".join(make_sentences(20, seed=22))
    columns = {"text": [long, long, long, "A river."], "title": ["In short", "A zone of the archive", None, "In short"]}
    options = {"answer_prefix": "{title}:", "truncation": "left"}
    part = ask("text-generation", folder, columns, options=options, generation={"max_new_tokens": 1})
    assert part["error"].null_count == 4
    assert part["num_input_tokens"].to_pylist()[:3] == [128] * 3
    tokenizer = load_tokenizer(folder)
    (whole,) = tokenizer.encode_batch([long])
    prefixes = tokenizer.encode_batch(["In short:", "A zone of the archive:"], add_special_tokens=False)
    cut = [len(whole) - 128 + len(ids) for ids in [*prefixes, []]]
    assert part["num_truncated_tokens"].to_pylist() == [*cut, 0]
    refused = ask("text-generation", folder, columns, options={"answer_prefix": "{title}:"})
    assert [error and error["kind"] for error in refused["error"].to_pylist()] == ["too_long"] * 3 + [None]
