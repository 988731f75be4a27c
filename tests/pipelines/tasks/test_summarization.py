"""Summarization: the checkpoint's prefix, long documents in chunks, summaries of summaries."""

import pyarrow as pa
import pytest
import torch
import transformers

from batchloom import models
from batchloom.models import load_tokenizer
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.replicas.results import result_table
from batchloom.pipelines.tasks import TaskSpec, create_task
from batchloom.pipelines.tasks.base import Answered
from batchloom.pipelines.tasks.chunks import chunks

GENERATION = {"num_beams": 2, "max_new_tokens": 10}


def reference(folder, texts, number=0, **more):
    """The answer of this number to each text."""
    tokenizer = transformers.BartTokenizerFast.from_pretrained(folder)
    model = transformers.BartForConditionalGeneration.from_pretrained(folder).eval()
    answers = []
    for text in texts:
        with torch.no_grad():
            tokens = model.generate(**tokenizer(text, return_tensors="pt"), **GENERATION, max_length=None, **more)
        answers.append(tokenizer.decode(tokens[number], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return answers


def joined(texts):
    return " ".join(text.strip() for text in texts if text.strip())


@pytest.fixture
def long_text(make_sentences):
    return " ".join(make_sentences(20, seed=21))


def test_the_prefix_stands_before_every_text_and_every_chunk(ask, equal, checkpoint, long_text):
    options = {"prefix": "Summarize: ", "long_documents": "chunk"}
    part = ask("summarization", checkpoint, {"text": ["A river.", long_text]}, options=options, generation=GENERATION)
    in_chunks = chunks(long_text, load_tokenizer(checkpoint), "Summarize: ", 128)
    assert len(in_chunks) > 3
    summaries = reference(checkpoint, ["Summarize: " + text for text in ["A river.", *in_chunks]])
    equal("summarization", part["summary_text"].to_pylist(), [summaries[0], joined(summaries[1:])])


def test_summaries_of_chunks_are_summarized_until_one_is_left(ask, equal, checkpoint, long_text):
    texts = ["A river.", long_text, "A zone."]
    options = {"long_documents": "chunk", "merge": "summarize"}
    part = ask("summarization", checkpoint, {"text": texts}, options=options, generation=GENERATION)
    tokenizer, text = load_tokenizer(checkpoint), long_text
    while len(tokenizer.encode_batch([text])[0]) > 128:
        text = joined(reference(checkpoint, chunks(text, tokenizer, "", 128)))
    equal("summarization", part["summary_text"].to_pylist(), reference(checkpoint, ["A river.", text, "A zone."]))
    assert part["num_truncated_tokens"].to_pylist() == [0, 0, 0]


@pytest.mark.parametrize("merge", ["join", "summarize"])
def test_several_summaries_are_a_list_best_first(ask, equal, checkpoint, long_text, merge):
    """Joined, the second is made of the second of each chunk; summarized, every round reads the best."""
    options = {"long_documents": "chunk", "merge": merge}
    wanted = {**GENERATION, "num_return_sequences": 2}
    part = ask("summarization", checkpoint, {"text": ["A river.", None, long_text]}, options=options, generation=wanted)
    tokenizer, text = load_tokenizer(checkpoint), long_text
    while merge == "summarize" and len(tokenizer.encode_batch([text])[0]) > 128:
        text = joined(reference(checkpoint, chunks(text, tokenizer, "", 128)))
    in_chunks = chunks(text, tokenizer, "", 128)
    assert (len(in_chunks) > 3) == (merge == "join")

    def expected(texts):
        own = [reference(checkpoint, texts, number, num_return_sequences=2) for number in range(2)]
        return [joined(one) if len(one) > 1 else one[0] for one in own]

    equal("summarization", part["summary_text"].to_pylist(), [expected(["A river."]), None, expected(in_chunks)])


def test_scores_of_a_text_in_chunks_are_of_all_of_them(ask, checkpoint, long_text):
    in_chunks = chunks(long_text, load_tokenizer(checkpoint), "", 128)
    options = {"long_documents": "chunk", "scores": True}
    part = ask("summarization", checkpoint, {"text": [long_text, *in_chunks]}, options=options, generation=GENERATION)
    whole, *apart = part.to_pylist()
    assert whole["token_log_probs"] == pytest.approx([one for row in apart for one in row["token_log_probs"]], abs=1e-4)
    assert whole["num_output_tokens"] == len(whole["token_log_probs"])
    assert whole["sequence_score"] == pytest.approx(sum(row["sequence_score"] for row in apart) / len(apart), abs=1e-4)


def test_summaries_that_do_not_shrink_are_an_error_row(ask, checkpoint, long_text, error_kinds):
    part = ask(
        "summarization",
        checkpoint,
        {"text": [long_text, "A zone."]},
        options={"long_documents": "chunk", "merge": "summarize"},
        generation={"num_beams": 1, "min_new_tokens": 126, "max_new_tokens": 126, "no_repeat_ngram_size": 0},
    )
    assert error_kinds(part) == ["not_shrinking", None]
    assert part["summary_text"][0].as_py() is None
    assert part["num_output_tokens"].to_pylist()[0] == 0


def test_what_cannot_be_meant_is_refused(ask, checkpoint):
    with pytest.raises(
        ConfigError, match=r"long_documents: must be one of error, truncate, chunk; found 'drop'\.\n.*me"
    ):
        ask("summarization", checkpoint, {"text": ["a"]}, options={"long_documents": "drop", "merge": 1})
    with pytest.raises(ConfigError, match="num_return_sequences"):  # more than there are beams
        ask("summarization", checkpoint, {"text": ["a"]}, generation={"num_beams": 2, "num_return_sequences": 3})


def test_summaries_of_nothing_but_special_tokens_stay_as_they_are(checkpoint):
    """They used to come back as an error about the input: an empty text cannot be summarized again."""
    task = create_task(
        TaskSpec(
            task="summarization",
            input=InputConfig(paths=()),
            options={"long_documents": "chunk", "merge": "summarize"},
            generation={},
            checkpoint=models.describe(checkpoint),
        )
    )
    tokenizer = models.load_tokenizer(checkpoint)
    ends = pa.array([[2]] * 3, pa.list_(pa.int32()))
    results = result_table(row=[0, 0, 1], piece=[0, 1, 0], token_ids=ends, score=[0.0] * 3)
    assert task.follow_up(results, tokenizer) is None
    assert task.finish(Answered(results, 3, None), tokenizer)[0].to_pylist() == ["", "", None]
