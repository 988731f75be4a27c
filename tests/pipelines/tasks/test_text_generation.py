"""Text generation and text2text generation against the reference's generate."""

import pytest
import torch
import transformers

from batchloom.pipelines.errors import ConfigError

GREEDY = {"max_new_tokens": 8, "do_sample": False}


def reference(folder, architecture, prompts, **generation):
    """New text for each prompt, one at a time."""
    tokenizer = (
        transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        if architecture.startswith("Bloom")
        else transformers.BartTokenizerFast.from_pretrained(folder)
    )
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            tokens = model.generate(**inputs, **generation)
            if not model.config.is_encoder_decoder:
                tokens = tokens[:, inputs["input_ids"].shape[1] :]
            answers.append(tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return answers


@pytest.mark.parametrize("architecture", ["BloomForCausalLM", "BartForCausalLM"])
def test_new_text_alone_is_what_the_reference_generates(ask, equal, make_checkpoint, make_sentences, architecture):
    model, prompts = make_checkpoint(architecture), make_sentences(12, seed=3, longest=12)
    part = ask("text-generation", model, {"text": prompts}, generation=GREEDY)
    expected = reference(model, architecture, prompts, **GREEDY)
    equal("text-generation", part["generated_text"].to_pylist(), [one[0] for one in expected])
    assert part["error"].null_count == 12


def test_text2text_is_what_the_reference_generates(ask, equal, checkpoint, make_sentences):
    texts = make_sentences(12, seed=4)
    part = ask("text2text-generation", checkpoint, {"text": texts})
    expected = reference(checkpoint, "BartForConditionalGeneration", texts)
    equal("text2text-generation", part["generated_text"].to_pylist(), [one[0] for one in expected])


def test_several_answers_are_a_list_best_first(ask, equal, checkpoint, make_sentences):
    texts, wanted = make_sentences(6, seed=5), {"num_beams": 4, "num_return_sequences": 3}
    part = ask("text2text-generation", checkpoint, {"text": [*texts, None]}, generation=wanted)
    expected = reference(checkpoint, "BartForConditionalGeneration", texts, **wanted)
    equal("text2text-generation", part["generated_text"].to_pylist(), [*expected, None])


def scored(folder, architecture, prompts, **generation):
    """For each prompt and answer: (score, log-probability of each new token), by the reference's own account."""
    kind = transformers.PreTrainedTokenizerFast if architecture.startswith("Bloom") else transformers.BartTokenizerFast
    tokenizer = kind.from_pretrained(folder)
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            output = model.generate(**inputs, **generation, output_scores=True, return_dict_in_generate=True)
        beams = getattr(output, "beam_indices", None)
        steps = model.compute_transition_scores(
            output.sequences, output.scores, beams, normalize_logits=beams is None
        ).tolist()
        start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        own = []
        for number, tokens in enumerate(output.sequences[:, start:].tolist()):
            num_tokens = tokens.index(2) + 1 if 2 in tokens else len(tokens)
            log_probs = steps[number][:num_tokens]
            own.append((sum(log_probs) if beams is None else output.sequences_scores[number].item(), log_probs))
        found.append(own)
    return found


@pytest.mark.parametrize("several", [1, 3])
def test_scores_are_those_of_the_reference(ask, equal, checkpoint, make_sentences, several):
    texts, wanted = make_sentences(6, seed=28), {"num_beams": 4, "num_return_sequences": several}
    columns = {"text": [texts[0], None, *texts[1:]]}
    plain = ask("text2text-generation", checkpoint, columns, generation=wanted)
    part = ask("text2text-generation", checkpoint, columns, options={"scores": True}, generation=wanted)
    assert part.drop_columns(["sequence_score", "token_log_probs"]) == plain
    assert part.column_names[:3] == ["generated_text", "sequence_score", "token_log_probs"]
    assert part["sequence_score"][1].as_py() is part["token_log_probs"][1].as_py() is None
    rows = [row for row in part.to_pylist() if row["error"] is None]
    ours = [(row["sequence_score"], row["token_log_probs"]) for row in rows]
    if several > 1:
        ours = [list(zip(*own, strict=True)) for own in ours]
    expected = scored(checkpoint, "BartForConditionalGeneration", texts, **wanted)
    equal("text2text-generation, scores", ours, expected if several > 1 else [own[0] for own in expected], 1e-4)
    lengths = [sum(map(len, row["token_log_probs"])) if several > 1 else len(row["token_log_probs"]) for row in rows]
    assert lengths == [row["num_output_tokens"] for row in rows]


def test_scores_of_a_greedy_answer_are_the_sum_of_its_tokens(ask, equal, make_checkpoint, make_sentences):
    model, prompts = make_checkpoint("BloomForCausalLM"), make_sentences(6, seed=29, longest=12)
    part = ask("text-generation", model, {"text": prompts}, options={"scores": True}, generation=GREEDY)
    ours = [(row["sequence_score"], row["token_log_probs"]) for row in part.to_pylist()]
    expected = [own[0] for own in scored(model, "BloomForCausalLM", prompts, **GREEDY)]
    equal("text-generation, scores", ours, expected, 1e-4)


def test_a_row_that_the_model_refused_has_read_nothing(ask, make_checkpoint):
    """The refused prompt was counted as read, here and in the job's totals."""
    model = make_checkpoint("BloomForCausalLM")
    part = ask("text-generation", model, {"text": ["Short.", "word " * 5000]}, generation=GREEDY)
    short, long = part.to_pylist()
    assert short["num_input_tokens"] > 0
    assert (long["error"]["kind"], long["num_input_tokens"], long["num_output_tokens"]) == ("too_long", 0, 0)


def test_a_template_puts_columns_into_the_prompt(ask, make_checkpoint):
    model = make_checkpoint("BloomForCausalLM")
    columns = {"title": ["Harbour", None, "River"], "number": [1, 2, 3]}
    part = ask(
        "text-generation",
        model,
        columns,
        options={"prompt_template": "{{{title}}} {number}: "},
        generation=GREEDY,
    )
    (first,), (third,) = reference(model, "BloomForCausalLM", ["{Harbour} 1: ", "{River} 3: "], **GREEDY)
    assert part["generated_text"].to_pylist() == [first, None, third]
    assert part["error"][1]["message"].as_py() == "column 'title, number' is null in this row"


def test_an_answer_ends_with_a_stop_string(ask, make_checkpoint, make_sentences):
    model, prompts = make_checkpoint("BloomForCausalLM"), make_sentences(6, seed=6, longest=8)
    whole = ask("text-generation", model, {"text": prompts}, generation=GREEDY)["generated_text"].to_pylist()
    stop = next(text[2:4] for text in whole if len(text) > 8)
    part = ask("text-generation", model, {"text": prompts}, options={"stop_strings": [stop]}, generation=GREEDY)
    stopped = part["generated_text"].to_pylist()
    assert "stop" in part["finish_reason"].to_pylist()
    for text, cut in zip(whole, stopped, strict=True):
        assert text.startswith(cut)
        assert (stop in cut) == (stop in text)


@pytest.mark.parametrize(
    ("task", "architecture", "options", "generation", "message"),
    [
        (
            "text-generation",
            "BartForConditionalGeneration",
            {},
            {},
            "needs one of BartForCausalLM, .*BloomForCausalLM; found Bart.*: summarization",
        ),
        ("text2text-generation", "BloomForCausalLM", {}, {}, "Use another checkpoint, or a task .* text-generation"),
        ("text-generation", "BloomForCausalLM", {"prompt_template": "{a.b}"}, {}, r"found \{a\.b\}"),
        (
            "text-generation",
            "BloomForCausalLM",
            {"prompt_template": "{a:>9999999999}{b!r}"},
            {},
            r"found \{a:>9+\}, \{b!r",
        ),
        ("text-generation", "BloomForCausalLM", {"prompt_template": "none"}, {}, "no column at all"),
        ("text-generation", "BloomForCausalLM", {"prompt_template": "{"}, {}, "task_options.prompt_template"),
        ("text-generation", "BloomForCausalLM", {"stop_strings": 3}, {}, "must be a text or a list of texts or null"),
        ("text-generation", "BloomForCausalLM", {"stop_strings": ["a"]}, {"stop_strings": ["b"]}, "Keep one"),
        (
            "text-generation",
            "BloomForCausalLM",
            {"promt_template": "x"},
            {},
            r"did you mean prompt_template\?",
        ),
        ("text-generation", "BloomForCausalLM", {}, {"num_beamz": 1}, "num_beams"),
        ("text-generation", "BloomForCausalLM", {}, {"suppress_tokens": [99999]}, "suppress_tokens names token 99999"),
    ],
)
def test_what_cannot_be_meant_is_refused(ask, make_checkpoint, task, architecture, options, generation, message):
    with pytest.raises(ConfigError, match=message):
        ask(task, make_checkpoint(architecture), {"text": ["a"]}, options=options, generation=generation)
