"""Question answering against the recipe of the pipeline that the reference had before version 5, written out here."""

import numpy as np
import pytest
import torch
import transformers

from batchloom.pipelines.errors import ConfigError


@pytest.fixture(scope="module", params=["BartForQuestionAnswering", "BloomForQuestionAnswering"])
def reader(request, make_checkpoint):
    return make_checkpoint(request.param, max_position_embeddings=512)


def reference(folder, question, context, doc_stride=128, max_answer_len=15, impossible=False):
    """Windows by the tokenizer's own overflow, one forward each, softmax over context, best outer product."""
    is_bloom = transformers.AutoConfig.from_pretrained(folder).model_type == "bloom"
    kind = transformers.PreTrainedTokenizerFast if is_bloom else transformers.BartTokenizerFast
    tokenizer = kind.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=384, stride=doc_stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    best, nothing = (-1.0, 0, 0), 1.0
    for window in range(len(encoded["input_ids"])):
        with torch.no_grad():
            output = model(torch.tensor([encoded["input_ids"][window]]))
        sequences = encoded.sequence_ids(window)
        outside = np.array([sequence != 1 for sequence in sequences])
        if impossible:
            outside[0] = False
        probabilities = []
        for logits in (output.start_logits, output.end_logits):
            logits = np.where(outside, -10000.0, logits[0].numpy())
            exponentials = np.exp(logits - logits.max())
            probabilities.append(exponentials / exponentials.sum())
        start, end = probabilities
        if impossible:
            nothing = min(nothing, float(start[0] * end[0]))
            start[0] = end[0] = 0.0
        scores = np.tril(np.triu(np.outer(start, end)), max_answer_len - 1)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        if scores[first, last] > best[0]:
            encoding = encoded.encodings[window]
            words = [encoding.word_to_chars(encoding.token_to_word(int(token)), 1) for token in (first, last)]
            best = (float(scores[first, last]), words[0][0], words[1][1])
    if impossible and nothing > best[0]:
        return {"answer": "", "score": nothing, "start": 0, "end": 0}
    return {"answer": context[best[1] : best[2]], "score": best[0], "start": best[1], "end": best[2]}


@pytest.mark.parametrize("options", [{}, {"max_answer_len": 3, "doc_stride": 32}, {"handle_impossible_answer": True}])
def test_answers_are_those_of_the_recipe(ask, equal, reader, make_sentences, options):
    questions = make_sentences(6, seed=18, longest=6)
    contexts = [" ".join(make_sentences(count, seed=19 + count)) for count in (1, 2, 5, 12, 14, 20)]
    part = ask("question-answering", reader, {"question": questions, "context": contexts}, options=options)
    assert part["num_input_tokens"].to_pylist()[-1] > 384
    assert part["error"].null_count == 6
    names = {"handle_impossible_answer": "impossible"}
    own = {names.get(name, name): value for name, value in options.items()}
    for row, question, context in zip(part.to_pylist(), questions, contexts, strict=True):
        expected = reference(reader, question, context, **own)
        equal("question-answering", [{name: row[name] for name in expected}], [expected], 1e-5)


def test_a_question_or_context_that_is_not_there_is_an_error_row(ask, reader, error_kinds):
    questions, contexts = (
        ["Where?", None, " ", "Where is the river zone? " * 200],
        ["Here.", "Here.", "Here.", "Here. "],
    )
    part = ask("question-answering", reader, {"question": questions, "context": contexts})
    assert error_kinds(part) == [None, "null_text", "empty_text", None]
    assert part["num_truncated_tokens"][3].as_py() > 100
    assert "column 'question' is null" in part["error"][1]["message"].as_py()


def test_the_columns_have_names_of_their_own(ask, reader):
    columns = {"q": ["Where?"], "c": ["Here it is."]}
    part = ask("question-answering", reader, columns, question_column="q", context_column="c")
    answer = part.to_pylist()[0]
    assert answer["answer"] == "Here it is."[answer["start"] : answer["end"]]


def test_what_cannot_be_meant_is_refused(ask, reader):
    columns = {"question": ["a"], "context": ["b"]}
    with pytest.raises(ConfigError, match=r"doc_stride: is 320.*\n.*max_answer_len: is 0"):
        ask("question-answering", reader, columns, options={"doc_stride": 320, "max_answer_len": 0})
    with pytest.raises(ConfigError, match="question_column and context_column are both 'context'"):
        ask("question-answering", reader, columns, options={"doc_stride": 8}, question_column="context")
