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
