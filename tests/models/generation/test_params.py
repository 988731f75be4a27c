"""GenerationParams: unknown and contradicting options are refused by name, and defaults come in the right order."""

import json
import logging
from dataclasses import replace

import pytest
import transformers

from batchloom.models.checkpoints.info import generation_defaults
from batchloom.models.errors import ParamsError
from batchloom.models.generation.absent_options import ABSENT, RESOURCE_HINTS, WITHOUT_EFFECT
from batchloom.models.generation.params import DEFAULTS, OPTIONS, GenerationParams

CNN = {
    "num_beams": 4,
    "max_length": 142,
    "min_length": 56,
    "length_penalty": 2.0,
    "early_stopping": True,
    "eos_token_id": 2,
}


def test_unset_fields_take_the_checkpoints_values_and_then_the_references():
    resolved = GenerationParams(length_penalty=0.5).resolve(CNN)
    assert (resolved.num_beams, resolved.max_length, resolved.length_penalty) == (4, 142, 0.5)
    assert (resolved.repetition_penalty, resolved.no_repeat_ngram_size) == (1.0, 0)


def test_resolving_twice_changes_nothing():
    resolved = GenerationParams(max_new_tokens=20).resolve(CNN)
    assert resolved.resolve(CNN) == resolved
    assert GenerationParams.from_dict(resolved.to_dict()).resolve(CNN) == resolved


def test_without_any_length_twenty_new_tokens_come():
    assert GenerationParams().resolve({}).max_new_tokens == 20


def test_max_new_tokens_wins_over_the_checkpoints_max_length():
    resolved = GenerationParams(max_new_tokens=7).resolve(CNN)
    assert (resolved.max_new_tokens, resolved.max_length) == (7, None)


def test_a_callers_max_length_wins_over_the_checkpoints_max_new_tokens():
    resolved = GenerationParams(max_length=9).resolve({"max_new_tokens": 50})
    assert (resolved.max_new_tokens, resolved.max_length) == (None, 9)


def test_a_checkpoints_min_length_yields_to_a_callers_smaller_max_length():
    assert GenerationParams(max_length=20).resolve(CNN).min_length == 20


def test_beam_options_of_a_checkpoint_mean_nothing_to_a_greedy_search():
    resolved = GenerationParams(num_beams=1).resolve(CNN)
    assert (resolved.early_stopping, resolved.length_penalty) == (False, 1.0)


HABITS = {
    "forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3, "decoder_start_token_id": 2,
    "bos_token_id": 0, "max_length": 142, "min_length": 56, "num_beams": 4, "suppress_tokens": [7], "guidance_scale": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", HABITS)
def test_null_is_as_if_the_checkpoint_did_not_set_it(name):
    """The checkpoint's value came back without a word."""
    nulls = {"guidance_scale": None, name: None}
    without = {key: value for key, value in HABITS.items() if key not in nulls}
    resolved = GenerationParams.from_dict(nulls).resolve(HABITS)
    assert resolved == replace(GenerationParams().resolve(without), without=tuple(sorted(nulls)))
    assert resolved.resolve(HABITS) == resolved
    again = GenerationParams.from_dict(json.loads(json.dumps(resolved.to_dict())))
    assert replace(again.resolve(HABITS), without=()) == replace(resolved, without=())
    if GenerationParams().resolve({}).to_dict().get(name) is None and name != "max_length":
        assert resolved.to_dict()[name] is None


def test_null_of_what_is_no_option_is_refused():
    with pytest.raises(ParamsError, match="num_baems"):
        GenerationParams.from_dict({"num_baems": None})
    with pytest.raises(ParamsError, match="without names 'num_baems'"):
        GenerationParams(without=["num_baems"])


def test_no_forced_end_token_is_taken_as_a_list_of_none():
    resolved = GenerationParams(forced_eos_token_id=[]).resolve(HABITS | {"guidance_scale": 1})
    assert resolved.forced_eos_token_id == ()
    assert resolved.to_dict()["forced_eos_token_id"] == []


def test_biases_are_taken_as_a_list_or_as_a_mapping():
    as_list = GenerationParams(sequence_bias=[[[5, 6], 2.5], [[7], -1]])
    assert as_list == GenerationParams(sequence_bias={(5, 6): 2.5, (7,): -1})
    assert GenerationParams.from_dict(json.loads(json.dumps(as_list.to_dict()))) == as_list
    with pytest.raises(ParamsError, match="sequence_bias names token 7"):
        as_list.check_vocabulary(7)


def test_several_end_ids_are_kept():
    assert GenerationParams(eos_token_id=[2, 5]).eos_token_ids == (2, 5)
    assert GenerationParams(eos_token_id=2).eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beam": 4}, "did you mean num_beams"),
        ({"num_beam_groups": 2}, "though transformers has it: .* the hub"),
        ({"guidance_scale": 2.5}, "though transformers has it: .* second forward"),
        ({"output_scores": True}, "scores: true"),
        ({"output_attentions": True}, "no attentions"),
        ({"output_hidden_states": True, "output_logits": True}, "feature-extraction.*task_options.scores"),
        ({"return_dict_in_generate": True}, "columns in any case"),
        ({"sequence_bias": [[[5], "much"]]}, "sequence_bias = .*a finite number"),
        ({"sequence_bias": [[[], 1.0]]}, "sequence_bias"),
        ({"sequence_bias": [[[5], float("inf")]]}, "sequence_bias"),
        ({"top_h": 0.0}, "top_h = 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"num_beams": 2.5}, "num_beams = 2.5"),
        ({"num_beams": True}, "num_beams = True"),
        ({"temperature": -1.0, "top_p": 2}, "temperature = -1.0.*top_p = 2"),
        ({"early_stopping": "sometimes"}, "early_stopping = 'sometimes'"),
        ({"max_length": 9, "max_new_tokens": 9}, "max_length and max_new_tokens are both set"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens = 9 is above"),
        ({"num_beams": 2, "num_return_sequences": 3}, "above num_beams = 2"),
        ({"do_sample": False, "temperature": 0.7}, "temperature = 0.7 needs do_sample"),
        ({"forced_eos_token_id": 2, "suppress_tokens": [2]}, "is in suppress_tokens too"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [["the"]]}, "bad_words_ids = .*list of lists of token ids"),
        ({"suppress_tokens": 5}, "suppress_tokens = 5; it must be a list of token ids"),
        ({"begin_suppress_tokens": [-1]}, "begin_suppress_tokens"),
        ({"eos_token_id": "</s>"}, "eos_token_id = '</s>'"),
        ({"forced_bos_token_id": [5]}, "forced_bos_token_id"),
        ({"decoder_start_token_id": True}, "decoder_start_token_id = True"),
        ({"exponential_decay_length_penalty": [4]}, "exponential_decay_length_penalty"),
        ({"early_stopping": 1}, "early_stopping = 1"),
        ({"stop_strings": {"x"}}, "stop_strings"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(options, message):
    with pytest.raises(ParamsError, match=message):
        GenerationParams.from_dict(options)


def test_options_that_change_no_token_are_let_pass():
    assert GenerationParams.from_dict({"use_cache": True, "num_beam_groups": 1, "num_beams": 2}).num_beams == 2


def test_greedy_search_refuses_several_answers():
    with pytest.raises(ParamsError, match="one answer"):
        GenerationParams(num_return_sequences=2).resolve({})


def test_sampling_options_without_sampling_are_refused_and_a_checkpoints_mean_nothing():
    """A caller's temperature was dropped without a word where do_sample was left out."""
    with pytest.raises(ParamsError, match=r"temperature = 0\.7 needs do_sample"):
        GenerationParams(temperature=0.7).resolve({})
    assert GenerationParams(temperature=0.7).resolve({"do_sample": True}).temperature == 0.7
    assert GenerationParams().resolve({"temperature": 0.7}).temperature == 1.0


def test_tokens_that_a_vocabulary_does_not_have_are_refused_by_option():
    params = GenerationParams(bad_words_ids=[[7, 50], [3]], eos_token_id=[2, 40], suppress_tokens=[39])
    params.check_vocabulary(51)
    with pytest.raises(ParamsError, match=r"bad_words_ids names token 50; eos_token_id names token 40; .* 0 to 39"):
        params.check_vocabulary(40)


def test_an_option_of_the_checkpoint_that_we_do_not_have_is_refused_by_name():
    with pytest.raises(ParamsError, match="num_beam_groups = 2"):
        GenerationParams().resolve({"num_beam_groups": 2})


def test_every_option_of_transformers_is_known_to_us():
    """max_time and others vanished: an option of a new version fails this test, until it is put into a table."""
    tables = (OPTIONS, ABSENT, RESOURCE_HINTS, WITHOUT_EFFECT)
    found = {name: sum(name in table for table in tables) for name in vars(transformers.GenerationConfig())}
    assert {name: number for name, number in found.items() if number != 1} == {}
    ours_alone = {name for table in tables for name in table} - set(found)
    assert ours_alone == {"forced_decoder_ids"}, "of older versions of transformers"


def test_defaults_are_transformers_own():
    theirs = transformers.GenerationConfig()._get_default_generation_params()
    theirs = {name: value for name, value in theirs.items() if name in OPTIONS and value is not None}
    ours = DEFAULTS | {"max_length": 20, "min_length": 0}  # an unset length is decided by resolve()
    assert {name: ours.get(name) for name in theirs} == theirs
    assert {name: value for name, value in ours.items() if name not in theirs} == {"renormalize_logits": False}


def test_transformers_own_defaults_ask_for_nothing_that_we_do_not_do(caplog):
    theirs = transformers.GenerationConfig()._get_default_generation_params()
    with caplog.at_level(logging.WARNING):
        GenerationParams().resolve(generation_defaults({}, theirs))
    assert caplog.text == ""


@pytest.mark.parametrize(
    "option",
    [
        {"max_time": 9.5},
        {"forced_decoder_ids": [[1, 50]]},
        {"guidance_scale": 1.5},
        {"assistant_ensemble_weight": 0.5},
        {"cache_implementation": "quantized"},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_apart", [True, False])
def test_what_a_checkpoint_asks_for_and_changes_tokens_is_refused_by_name(option, is_apart):
    """In generation_config.json, or in config.json where that does not exist."""
    defaults = generation_defaults({}, option) if is_apart else generation_defaults(option, None)
    with pytest.raises(ParamsError, match=f"ask for {next(iter(option))} = "):
        GenerationParams().resolve(defaults)


@pytest.mark.parametrize(
    "option", [{"prompt_lookup_num_tokens": 3}, {"use_mtp": True}, {"output_scores": True}], ids=str
)
@pytest.mark.parametrize("is_apart", [True, False])
def test_what_a_checkpoint_asks_for_and_changes_no_token_is_warned_of_by_name(caplog, option, is_apart):
    (name,) = option
    with caplog.at_level(logging.WARNING):
        defaults = generation_defaults({}, option) if is_apart else generation_defaults(option, None)
    assert f"config.json sets {name} = " in caplog.text
    assert name not in defaults
    with pytest.raises(ParamsError, match="though transformers has it"):
        GenerationParams.from_dict(option)


def test_a_key_that_nobody_knows_is_warned_of_and_ignored(caplog):
    """As transformers does, which keeps such keys and never reads them."""
    with caplog.at_level(logging.WARNING):
        assert generation_defaults({}, {"num_baems": 4, "use_cache": True, "max_length": None}) == {}
    assert "num_baems = 4" in caplog.text
    assert "use_cache" not in caplog.text
