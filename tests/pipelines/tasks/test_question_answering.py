"""Question answering against the recipe of the pipeline that the reference had before version 5, written out here."""

import numpy as np
import pytest
import torch
import transformers

from batchloom.pipelines.errors import ConfigError


@pytest.fixture(scope="module", params=["BartForQuestionAnswering", "BloomForQuestionAnswering"])
def reader(request, make_checkpoint):
    return make_checkpoint(request.param, max_position_embeddings=512)


def reference(folder, question, context, doc_stride=128, max_answer_len=15, impossible=False, align=True, top_k=1):
    """Windows by the tokenizer's own overflow, one forward each, softmax over context, best outer products.

    The pipeline took the top_k spans of tokens of each window, and of all of them the best; the same span of the text
    can be several of these. Here it is one.
    """
    is_bloom = transformers.AutoConfig.from_pretrained(folder).model_type == "bloom"
    kind = transformers.PreTrainedTokenizerFast if is_bloom else transformers.BartTokenizerFast
    tokenizer = kind.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=384, stride=doc_stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    found, nothing = {}, 1.0
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
        encoding = encoded.encodings[window]
        own = []
        for place in np.argsort(-scores.flatten(), kind="stable"):
            first, last = (int(token) for token in np.unravel_index(place, scores.shape))
            if scores[first, last] <= 0 or len(own) == top_k:
                break
            if align:
                words = [encoding.word_to_chars(encoding.token_to_word(token), 1) for token in (first, last)]
            else:
                words = [encoding.offsets[token] for token in (first, last)]
            span = words[0][0], words[1][1]
            if span not in own:
                own.append(span)
                found[span] = max(found.get(span, 0.0), float(scores[first, last]))
    answers = [
        {"answer": context[start:end], "score": score, "start": start, "end": end}
        for (start, end), score in found.items()
    ]
    if impossible:
        answers.append({"answer": "", "score": nothing, "start": 0, "end": 0})
    return sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_answer_len": 3, "doc_stride": 32},
        {"handle_impossible_answer": True},
        {"top_k": 4, "doc_stride": 32},
        {"top_k": 30, "handle_impossible_answer": True, "align_to_words": False},
    ],
)
def test_answers_are_those_of_the_recipe(ask, equal, reader, make_sentences, options):
    questions = make_sentences(6, seed=18, longest=6)
    contexts = [" ".join(make_sentences(count, seed=19 + count)) for count in (1, 2, 5, 12, 14, 20)]
    part = ask("question-answering", reader, {"question": questions, "context": contexts}, options=options)
    assert part["num_input_tokens"].to_pylist()[-1] > 384
    assert part["error"].null_count == 6
    names = {"handle_impossible_answer": "impossible", "align_to_words": "align"}
    own = {names.get(name, name): value for name, value in options.items()}
    for row, question, context in zip(part.to_pylist(), questions, contexts, strict=True):
        expected = reference(reader, question, context, **own)
        equal("question-answering", [{name: row[name] for name in expected[0]}], expected[:1], 1e-5)
        if "top_k" in options:
            assert len(row["answers"]) > 1
            equal("question-answering", row["answers"], expected, 1e-5)


def test_a_question_or_context_that_is_not_there_is_an_error_row(ask, reader, error_kinds):
    questions, contexts = (
        ["Where?", None, " ", "Where is the river zone? " * 200],
        ["Here.", "Here.", "Here.", "Here. "],
    )
    part = ask("question-answering", reader, {"question": questions, "context": contexts})
    assert error_kinds(part) == [None, "null_text", "empty_text", None]
    assert part["num_truncated_tokens"][3].as_py() > 100
    assert "column 'question' is null" in part["error"][1]["message"].as_py()


JAPANESE = "東京都は日本の首都である。Tokyo駅から川まで歩いて十分かかるので、地図を持って行くとよい。"


@pytest.mark.parametrize("limit", [1, 4, 15])
def test_answers_in_a_script_without_spaces_have_as_many_tokens_as_asked(ask, make_checkpoint, limit):
    """A clause is one word for the tokenizer, so each answer was a whole clause, whatever max_answer_len said."""
    model = make_checkpoint("BartForQuestionAnswering", max_position_embeddings=512)
    tokyo = range(JAPANESE.index("Tokyo") + 1, JAPANESE.index("Tokyo") + len("Tokyo"))
    columns = {"question": ["首都は？"], "context": [JAPANESE]}
    (row,) = ask("question-answering", model, columns, options={"max_answer_len": limit, "top_k": 40}).to_pylist()
    (apart,) = ask(
        "question-answering", model, columns, options={"max_answer_len": limit, "top_k": 40, "align_to_words": False}
    ).to_pylist()
    assert len(row["answers"]) > 20
    for answer in row["answers"]:
        start, end = answer["start"], answer["end"]
        assert answer["answer"] == JAPANESE[start:end]
        characters = [one for one in answer["answer"] if not one.isascii()]
        assert len(characters) <= limit, "each has a token or more, and only the letters of Tokyo are one word"
        assert start not in tokyo
        assert end not in tokyo
    assert any(one["start"] in tokyo for one in apart["answers"]), "without words an answer may begin in one"


def test_defaults_fit_a_model_of_few_positions(ask, make_checkpoint, make_sentences, error_kinds):
    """A doc_stride that nobody had set was refused with 128 positions, and with 48 made every row an error."""
    for positions in (128, 48):
        model = make_checkpoint("BartForQuestionAnswering", max_position_embeddings=positions)
        long = " ".join(make_sentences(8, seed=27))
        columns = {"question": ["Where is it?", long, "Where is the river?"], "context": ["Here. " * 8, long, long]}
        part = ask("question-answering", model, columns)
        assert error_kinds(part) == [None] * 3
        assert [cut > 0 for cut in part["num_truncated_tokens"].to_pylist()] == [False, True, False]
        with pytest.raises(ConfigError, match=f"doc_stride: is 128, must be from 0 to {positions // 2 - 8}"):
            ask("question-answering", model, columns, options={"doc_stride": 128})


def test_the_columns_have_names_of_their_own(ask, reader):
    columns = {"q": ["Where?"], "c": ["Here it is."]}
    part = ask("question-answering", reader, columns, question_column="q", context_column="c")
    answer = part.to_pylist()[0]
    assert answer["answer"] == "Here it is."[answer["start"] : answer["end"]]


def test_what_cannot_be_meant_is_refused(ask, reader):
    columns = {"question": ["a"], "context": ["b"]}
    with pytest.raises(ConfigError, match=r"doc_stride: is 320.*\n.*max_answer_len: is 0.*\n.*top_k: is 0"):
        ask("question-answering", reader, columns, options={"doc_stride": 320, "max_answer_len": 0, "top_k": 0})
    with pytest.raises(ConfigError, match="question_column and context_column are both 'context'"):
        ask("question-answering", reader, columns, options={"doc_stride": 8}, question_column="context")
