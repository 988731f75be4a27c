"""Conversation: turns joined as each family was trained, the newest kept, the reply that of the reference's model."""

import pyarrow as pa
import pytest
import torch
import transformers

from batchloom.models import load_tokenizer
from batchloom.pipelines.errors import ConfigError

GENERATION = {"num_beams": 2, "max_new_tokens": 8}
DELIMITERS = {"BlenderbotForConditionalGeneration": "  ", "BlenderbotSmallForConditionalGeneration": "\n"}


@pytest.fixture(scope="module", params=DELIMITERS)
def talker(request, make_checkpoint):
    return request.param, make_checkpoint(request.param)


def reference(architecture, folder, text, number=0, **more):
    """(reply of this number, number of tokens read), from our tokens of the joined text: see the notes on its
    tokenizers."""
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode_batch([text])
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    with torch.no_grad():
        tokens = model.generate(torch.tensor(ids), **GENERATION, **more)
    return tokenizer.decode_batch(tokens.tolist())[number], len(ids[0])


def test_replies_are_those_of_the_reference(ask, equal, talker):
    architecture, model = talker
    dialogues = [["hi there", " how is the river ?", "fine"], ["hello"]]
    part = ask("conversational", model, {"text": dialogues}, generation=GENERATION)
    for row, turns in zip(part.to_pylist(), dialogues, strict=True):
        text = DELIMITERS[architecture].join(turn.strip() for turn in turns)
        equal("conversational", [(row["reply"], row["num_input_tokens"])], [reference(architecture, model, text)])
        assert row["num_dropped_turns"] == row["num_truncated_tokens"] == 0


def test_several_replies_are_a_list_best_first(ask, equal, talker):
    architecture, model = talker
    wanted = {**GENERATION, "num_return_sequences": 2}
    columns = {"text": [["hi there", "fine"], None]}
    part = ask("conversational", model, columns, options={"scores": True}, generation=wanted)
    assert part.column_names[:4] == ["reply", "num_dropped_turns", "sequence_score", "token_log_probs"]
    text = DELIMITERS[architecture].join(["hi there", "fine"])
    expected = [reference(architecture, model, text, number, num_return_sequences=2)[0] for number in range(2)]
    equal("conversational", part["reply"].to_pylist(), [expected, None])
    best, second = part["sequence_score"][0].as_py()
    assert best > second
    assert part["num_dropped_turns"].to_pylist() == [0, None]


def test_one_text_is_a_dialogue_of_lines(ask, talker):
    _, model = talker
    listed = ask("conversational", model, {"text": [["hi", "how are you?"]]}, generation=GENERATION)
    assert ask("conversational", model, {"text": ["hi\n\n how are you? "]}, generation=GENERATION) == listed


def test_the_persona_stands_before_the_turns_and_is_never_dropped(ask, talker):
    architecture, model = talker
    columns = {"text": ["hello"] * 3, "who": ["i sail\nyour persona: i read", None, "i sail " * 60]}
    part = ask("conversational", model, columns, options={"persona_column": "who"}, generation=GENERATION)
    told = DELIMITERS[architecture].join(["your persona: i sail", "your persona: i read", "hello"])
    expected = [reference(architecture, model, told), reference(architecture, model, "hello")]
    assert list(zip(part["reply"].to_pylist(), part["num_input_tokens"].to_pylist(), strict=True))[:2] == expected
    assert "Shorten it" in part["error"][2]["message"].as_py()


def test_the_newest_turns_are_kept_and_the_dropped_ones_counted(ask, talker):
    architecture, model = talker
    turns = [f"turn {number} of the river" for number in range(40)]
    part = ask("conversational", model, {"text": [turns]}, generation=GENERATION).to_pylist()[0]
    dropped = part["num_dropped_turns"]
    delimiter = DELIMITERS[architecture]
    assert (part["reply"], part["num_input_tokens"]) == reference(architecture, model, delimiter.join(turns[dropped:]))
    tokenizer = load_tokenizer(model)
    (one_more,) = tokenizer.encode_batch([delimiter.join(turns[dropped - 1 :])])
    assert part["num_input_tokens"] <= 128 < len(one_more)
    lengths = [len(ids) for ids in tokenizer.encode_batch(turns[:dropped], add_special_tokens=False)]
    assert part["num_truncated_tokens"] == sum(lengths)


def test_a_turn_longer_than_the_model_keeps_its_end(ask, talker):
    _, model = talker
    part = ask("conversational", model, {"text": [["hi", "river " * 150 + "zone"]]}, generation=GENERATION).to_pylist()[
        0
    ]
    assert part["error"] is None
    assert part["num_input_tokens"] == 128
    assert part["num_dropped_turns"] == 1
    assert part["num_truncated_tokens"] > 22


def test_a_dialogue_without_turns_is_an_error_row(ask, talker, error_kinds):
    dialogues = pa.array([None, [], [None, " "], ["hi", None]], pa.list_(pa.string()))
    part = ask("conversational", talker[1], {"text": dialogues}, generation=GENERATION)
    assert error_kinds(part) == ["null_text", "empty_text", "empty_text", None]


def test_what_cannot_be_meant_is_refused(ask, talker, checkpoint):
    with pytest.raises(ConfigError, match="needs a dialogue model, such as a Blenderbot; found BartFor"):
        ask("conversational", checkpoint, {"text": ["hi"]})
    with pytest.raises(ConfigError, match=r"persona_column: is 'text', which is input\.text_column"):
        ask("conversational", talker[1], {"text": ["hi"]}, options={"persona_column": "text"})
