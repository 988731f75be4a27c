"""Scores of targets are the reference's loss where labels of -100 mask the source, whatever shares a computation."""

import pytest
import torch
import transformers

from batchloom.models import load_model
from batchloom.models.errors import RequestError
from batchloom.models.layers import shared_prefix
from batchloom.models.single_pass.single_pass import SinglePass

BART = {
    "vocab_size": 83,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 60,
    "init_std": 0.3,
}
BLOOM = {"vocab_size": 83, "hidden_size": 24, "n_layer": 2, "n_head": 3, "pad_token_id": 3, "initializer_range": 0.3}
TRANSLATORS = [f"{family}ForConditionalGeneration" for family in ("Bart", "MBart", "Blenderbot", "BlenderbotSmall")]
CONTINUERS = ["BloomForCausalLM", "BartForCausalLM", "BlenderbotForCausalLM"]

# Float32 rounding of two orders of summation: log-probabilities of some 5 nats came within 1e-5 of each other.
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """both(architecture) -> our model and the reference's, of the same weights."""
    made = {}

    def make(architecture):
        if architecture not in made:
            torch.manual_seed(0)
            settings = BLOOM if architecture.startswith("Bloom") else BART
            config = getattr(transformers, architecture.partition("For")[0] + "Config")(**settings)
            reference = getattr(transformers, architecture)(config).eval()
            with torch.no_grad():
                if hasattr(reference, "final_logits_bias"):
                    reference.final_logits_bias.normal_()
            folder = str(tmp_path_factory.mktemp(architecture))
            reference.save_pretrained(folder)
            made[architecture] = load_model(folder, dtype="float32"), reference
        return made[architecture]

    return make


def token_lists(num_lists, longest, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (num_lists,), generator=generator).tolist()
    return [torch.randint(4, 83, (length,), generator=generator).tolist() for length in lengths]


def questions():
    """17 sources, of which every third is there again and two are one token long, with one to five targets each."""
    sources = [*token_lists(13, longest=30, seed=1), [5], [6]]
    sources += sources[::3]
    return sources, [token_lists(1 + row % 5, longest=12, seed=row) for row in range(len(sources))]


def expected(reference, source, target):
    """The reference's log-probabilities of a target, and its loss."""
    if reference.config.is_encoder_decoder:
        inputs, labels = {"input_ids": torch.tensor([source])}, torch.tensor([target])
    else:
        masked = [-100] * len(source) + target
        if reference.config.model_type != "bloom":
            masked = [*masked[1:], -100]  # the reference shifts BLOOM's labels, and these decoders' not
        inputs, labels = {"input_ids": torch.tensor([source + target])}, torch.tensor([masked])
    with torch.no_grad():
        output = reference(**inputs, labels=labels)
    logits = output.logits[0] if reference.config.is_encoder_decoder else output.logits[0, len(source) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0], output.loss.item()


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 100000])
@pytest.mark.parametrize("architecture", [*TRANSLATORS, *CONTINUERS])
def test_targets_have_the_references_loss(both, architecture, max_batch_tokens):
    model, reference = both(architecture)
    sources, targets = questions()
    found = SinglePass(model, max_batch_tokens).score_targets(sources, targets)
    assert [len(own) for own in found] == [len(own) for own in targets]
    for source, own_targets, own_scores in zip(sources, targets, found, strict=True):
        for target, scores in zip(own_targets, own_scores, strict=True):
            log_probs, loss = expected(reference, source, target)
            assert torch.allclose(scores.log_probs, log_probs, **CLOSE)
            assert scores.total == pytest.approx(-loss * len(target), abs=2e-4)


@pytest.mark.parametrize("architecture", ["BartForConditionalGeneration", "BloomForCausalLM"])
def test_one_target_is_scored_as_one_of_several(both, architecture):
    model, _ = both(architecture)
    sources, targets = questions()
    alone = SinglePass(model).score(sources, [own[0] for own in targets])
    for scores, own in zip(alone, SinglePass(model).score_targets(sources, targets), strict=True):
        assert torch.allclose(scores.log_probs, own[0].log_probs, **CLOSE)


@pytest.mark.parametrize("architecture", ["BartForConditionalGeneration", "BloomForCausalLM"])
def test_a_source_is_computed_once_for_all_its_targets_and_rows(both, architecture):
    model, _ = both(architecture)
    single_pass = SinglePass(model, 100000, num_workers=1)
    single_pass.score_targets([[5, 6, 7, 8], [9, 2], [5, 6, 7, 8]], [[[4], [5, 6]], [[7]], [[8]]])
    source_tokens, target_tokens = 6, 5
    assert single_pass.stats.num_tokens == source_tokens + (0 if model.is_encoder_decoder else target_tokens)


def test_attention_over_many_copies_of_a_prompt_is_computed_in_parts(both, monkeypatch):
    model, reference = both("BloomForCausalLM")
    monkeypatch.setattr(shared_prefix, "MOST_TOKENS", 50)
    source, targets = token_lists(1, 30, seed=2)[0], token_lists(9, 12, seed=3)
    (found,) = SinglePass(model).score_targets([source], [targets])
    for target, scores in zip(targets, found, strict=True):
        assert torch.allclose(scores.log_probs, expected(reference, source, target)[0], **CLOSE)


def test_what_cannot_be_scored_is_named(both):
    translator, continuer = SinglePass(both("BartForConditionalGeneration")[0]), SinglePass(both("BartForCausalLM")[0])
    with pytest.raises(RequestError, match="2 sequences came with 1 lists of targets"):
        translator.score_targets([[5], [6]], [[[7]]])
    with pytest.raises(RequestError, match="Sequence 1 has no target"):
        translator.score_targets([[5], [6]], [[[7]], []])
    with pytest.raises(RequestError, match="Sequence 0: Target 1: The token list is empty"):
        continuer.score_targets([[5]], [[[7], []]])
    long = [5] * 40
    assert len(translator.score([long], [long])) == 1
    with pytest.raises(RequestError, match="Sequence 0: Target 0: 80 tokens are more than the model's 60 positions"):
        continuer.score([long], [long])
