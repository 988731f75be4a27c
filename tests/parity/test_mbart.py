"""What sets mBART apart: texts end in a language code, which the decoder starts from, or begin with one (mBART-50)."""

import pytest
import torch
import transformers

from batchloom.models import Engine, GenerationParams, SinglePass, load_model
from batchloom.models.checkpoints.info import generation_defaults

BOUND = 2e-5  # see test_logits.py
ENGLISH, ROMANIAN = 101, 102
SIZES = {
    "vocab_size": 103, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 72, "decoder_ffn_dim": 60, "max_position_embeddings": 64,
    "scale_embedding": True,
}  # fmt: skip
TEXTS = [[5, 9, 14, 33, 70, 2, ENGLISH], [7, 2, ENGLISH], [60, 61, 82, 80, 4, 4, 17, 11, 25, 2, ENGLISH]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """pair(head) -> (the reference's model, ours) with wide random weights, made once; no decoder_start_token_id."""
    made = {}

    def get(head):
        if head not in made:
            torch.manual_seed(0)
            reference = getattr(transformers, f"MBart{head}")(transformers.MBartConfig(**SIZES)).eval()
            with torch.no_grad():
                for name, parameter in reference.named_parameters():
                    if parameter.dim() == 2:
                        parameter.normal_(0, 1.0 if "positions" in name else 0.25)
            folder = tmp_path_factory.mktemp(head)
            reference.save_pretrained(folder)
            made[head] = reference, load_model(str(folder))
        return made[head]

    return get


@pytest.mark.parametrize("head", ["Model", "ForConditionalGeneration", "ForSequenceClassification"])
def test_texts_that_end_in_a_language_code_give_the_references_logits(pair, head, table):
    """The decoder starts from the code, and classes are read at the end token before it."""
    reference, model = pair(head)
    worst = 0.0
    for text in TEXTS:
        ids = torch.tensor([text])
        with torch.no_grad():
            expected = reference(ids)
        expected = expected.last_hidden_state if head == "Model" else expected.logits
        worst = max(worst, float((model(ids) - expected).abs().max()))
    table.append((f"MBart{head}", "language code at the end", worst))
    assert worst < BOUND


def test_in_a_batch_each_text_starts_from_its_own_code(pair):
    _, model = pair("ForConditionalGeneration")
    texts = [TEXTS[0], [*TEXTS[1][:-1], ROMANIAN]]
    padded, mask = torch.ones(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)
    for row, text in enumerate(texts):
        padded[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    together = model(padded, mask)
    for row, text in enumerate(texts):
        assert torch.allclose(together[row, : len(text)], model(torch.tensor([text]))[0], atol=1e-6)


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize(
    "target",
    [
        {"decoder_start_token_id": ROMANIAN},  # mbart-large-en-ro
        {"decoder_start_token_id": 2, "forced_bos_token_id": ROMANIAN},  # mbart-large-50-many-to-many-mmt
        {},  # no start token anywhere: the decoder starts from bos_token_id
    ],
    ids=["starts from the code", "is forced to the code", "starts from bos"],
)
def test_translations_are_the_references(pair, target, num_beams):
    reference, model = pair("ForConditionalGeneration")
    options = {"max_new_tokens": 12, "num_beams": num_beams, "no_repeat_ngram_size": 2, **target}
    params = GenerationParams(**{**generation_defaults(reference.config.to_dict(), None), **options})
    answers = Engine(model).generate(TEXTS, params)
    for text, answer in zip(TEXTS, answers, strict=True):
        with torch.no_grad():
            expected = reference.generate(torch.tensor([text]), **options)[0, 1:].tolist()
        assert answer.outputs[0].token_ids == expected[: len(answer.outputs[0].token_ids)]
        assert set(expected[len(answer.outputs[0].token_ids) :]) <= {1}


def test_targets_are_scored_as_the_references_labels(pair):
    """Labels are rotated as well: the decoder starts from the target's own last token."""
    reference, model = pair("ForConditionalGeneration")
    target = [44, 45, 46, 2, ROMANIAN]
    for text, scores in zip(TEXTS, SinglePass(model).score(TEXTS, [target] * len(TEXTS)), strict=True):
        with torch.no_grad():
            loss = reference(torch.tensor([text]), labels=torch.tensor([target])).loss
        assert -float(scores.log_probs.mean()) == pytest.approx(float(loss), abs=BOUND)
