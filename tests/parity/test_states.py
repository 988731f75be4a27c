"""Hidden states and attention weights of every layer and stack equal the reference's, of each sequence alone.

The bound is that of test_logits.py, where the reason for it is; states are of a size near 1, weights below it.
"""

import pytest
import torch

from batchloom.models import SinglePass, load_model
from batchloom.models.errors import RequestError
from tests.parity.test_logits import BOUND, reference_model

BARES = ("BartModel", "MBartModel", "BlenderbotModel", "BlenderbotSmallModel", "BloomModel")
STACKS = [
    ("BartModel", "encoder"),
    ("BartModel", "decoder"),
    ("MBartModel", "encoder"),
    ("MBartModel", "decoder"),
    ("BlenderbotModel", "encoder"),
    ("BlenderbotSmallModel", "encoder"),
    ("BloomModel", "decoder"),
    ("BartForConditionalGeneration", "decoder"),
    ("BlenderbotForConditionalGeneration", "encoder"),
    ("BartForCausalLM", "decoder"),
    ("MBartForCausalLM", "decoder"),
    ("BlenderbotForCausalLM", "decoder"),
    ("BlenderbotSmallForCausalLM", "decoder"),
    ("BloomForCausalLM", "decoder"),
]
WITH_REPLY = ("BlenderbotModel", "BlenderbotSmallModel", "BlenderbotForConditionalGeneration")
"""Their reference demands decoder ids, which change nothing of the encoder."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """pair(architecture, **changes) -> (the reference's model, ours), made once."""
    made = {}

    def get(architecture, **changes):
        wish = architecture, tuple(changes.items())
        if wish not in made:
            reference = reference_model(architecture, changes)
            reference.set_attn_implementation("eager")  # others give no weights
            folder = tmp_path_factory.mktemp(architecture)
            reference.save_pretrained(folder)
            made[wish] = reference, load_model(str(folder))
        return made[wish]

    return get


def sequences(seed=0):
    """Token lists of odd lengths, each with the end token last."""
    generator = torch.Generator().manual_seed(seed)
    return [[*torch.randint(4, 100, (n,), generator=generator).tolist(), 2] for n in (11, 1, 62, 11, 6, 29, 0)]


def expected(reference, sequence, stack):
    """(hidden states [layers + 1, T, D], weights [layers, H, T, T], cross weights or None) of one sequence."""
    ids = torch.tensor([sequence])
    reply = {"decoder_input_ids": ids} if type(reference).__name__ in WITH_REPLY else {}
    with torch.no_grad():
        # use_cache=False: as in test_logits.py
        found = reference(ids, output_hidden_states=True, output_attentions=True, use_cache=False, **reply)
    prefix = f"{stack}_" if "encoder_hidden_states" in found else ""
    hidden, weights = found[f"{prefix}hidden_states"], found[f"{prefix}attentions"]
    cross = found["cross_attentions"] if prefix == "decoder_" else None
    return [None if own is None else torch.cat(own) for own in (hidden, weights, cross)]


def gap(one, other):
    assert one.shape == other.shape
    return float((one - other).abs().max())


@pytest.mark.parametrize(("architecture", "stack"), STACKS)
def test_hidden_states_of_each_layer_are_the_references(pair, table, architecture, stack):
    reference, model = pair(architecture)
    found = [SinglePass(model, 64).all_hidden_states(sequences(), stack=stack)]
    by_layer = [
        SinglePass(model, 64).hidden_states(sequences(), layer=layer, stack=stack)
        for layer in range(-len(found[0][0]), len(found[0][0]))
    ]
    worst = 0.0
    for row, sequence in enumerate(sequences()):
        theirs, _, _ = expected(reference, sequence, stack)
        worst = max(worst, gap(found[0][row], theirs))
        for layer, ours in zip(range(-len(theirs), len(theirs)), by_layer, strict=True):
            worst = max(worst, gap(ours[row], theirs[layer]))
    table.append((architecture, f"hidden states of the {stack}", worst))
    assert worst < BOUND


@pytest.mark.parametrize(("architecture", "stack"), STACKS)
def test_attention_weights_are_the_references(pair, table, architecture, stack):
    reference, model = pair(architecture)
    found = SinglePass(model, 64).attentions(sequences(), stack=stack)
    worst = max(
        gap(ours, expected(reference, sequence, stack)[1]) for ours, sequence in zip(found, sequences(), strict=True)
    )
    table.append((architecture, f"attention weights of the {stack}", worst))
    assert worst < BOUND


@pytest.mark.parametrize("architecture", ["BartModel", "MBartModel"])
def test_cross_attention_weights_are_the_references(pair, table, architecture):
    reference, model = pair(architecture)
    outputs = ("cross_attentions", "hidden_states", "attentions")
    found = SinglePass(model, 64).states(sequences(), outputs)
    worst = 0.0
    for ours, sequence in zip(found, sequences(), strict=True):
        hidden, weights, cross = expected(reference, sequence, "decoder")
        theirs = {"cross_attentions": cross, "hidden_states": hidden, "attentions": weights}
        worst = max(worst, *(gap(ours[output], theirs[output]) for output in outputs))
    table.append((architecture, "cross-attention weights", worst))
    assert worst < BOUND


@pytest.mark.parametrize("heads", [1, 3, 6, 16])
def test_weights_with_alibi_are_the_references_for_any_number_of_heads(pair, table, heads):
    reference, model = pair("BloomModel", n_head=heads)
    found = SinglePass(model).attentions(sequences())
    worst = max(gap(ours, expected(reference, one, "decoder")[1]) for ours, one in zip(found, sequences(), strict=True))
    table.append(("BloomModel", f"attention weights, {heads} heads (ALiBi)", worst))
    assert worst < BOUND


@pytest.mark.parametrize("changes", [{"apply_residual_connection_post_layernorm": True}, {"n_layer": 1}], ids=str)
def test_hidden_states_of_blooms_other_forms_are_the_references(pair, changes):
    reference, model = pair("BloomModel", **changes)
    for ours, sequence in zip(SinglePass(model).all_hidden_states(sequences()), sequences(), strict=True):
        assert gap(ours, expected(reference, sequence, "decoder")[0]) < BOUND


@pytest.mark.parametrize("architecture", BARES)
def test_several_poolings_of_a_layer_are_those_of_its_states(pair, architecture):
    _, model = pair(architecture)
    single_pass = SinglePass(model, 64)
    states = single_pass.hidden_states(sequences(), layer=1)
    pooled = single_pass.embed(sequences(), ["last", "mean", "cls"], layer=1)
    assert list(pooled) == ["last", "mean", "cls"]
    for pooling, pool in {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "last": lambda x: x[-1]}.items():
        # exactly: the same numbers, pooled by the same operation
        assert torch.equal(pooled[pooling], torch.stack([pool(own) for own in states]))
        assert torch.equal(pooled[pooling], single_pass.embed(sequences(), pooling, layer=1))


@pytest.mark.parametrize("architecture", BARES)
def test_the_default_is_the_last_layer_of_the_stack_that_reads_the_input(pair, architecture):
    _, model = pair(architecture)
    stack = "encoder" if "Blenderbot" in architecture else "decoder"
    single_pass = SinglePass(model)
    for ours, own in zip(
        single_pass.hidden_states(sequences()), single_pass.all_hidden_states(sequences(), stack), strict=True
    ):
        assert torch.equal(ours, own[-1])


def test_normalized_states_have_length_one(pair):
    _, model = pair("BartModel")
    for own in SinglePass(model).hidden_states(sequences(), layer=2, normalize=True):
        assert torch.allclose(own.norm(dim=-1), torch.ones(len(own)))


class Counting(torch.nn.Module):
    """A layer that counts its calls."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.num_calls = layer, 0
        self.crosses = getattr(layer, "crosses", None)

    def forward(self, *arguments):
        self.num_calls += 1
        return self.layer(*arguments)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_layers_above_the_one_that_is_asked_for_are_not_computed(pair, monkeypatch, layer):
    _, model = pair("BloomModel")
    counting = torch.nn.ModuleList(Counting(one) for one in model.h)
    monkeypatch.setitem(model._modules, "h", counting)
    SinglePass(model, num_workers=1).hidden_states([[5, 9, 2]], layer=layer)
    assert [one.num_calls for one in counting] == [1] * layer + [0] * (3 - layer)


def test_what_a_model_does_not_have_is_refused(pair):
    _, bart = pair("BartModel")
    _, bloom = pair("BloomModel")
    _, blenderbot = pair("BlenderbotModel")
    with pytest.raises(RequestError, match=r"layer = 4 is none of the decoder's: .* 0 .* to 3 .*, or -4 to -1"):
        SinglePass(bart).hidden_states([[5, 2]], layer=4)
    with pytest.raises(RequestError, match=r"layer = -4 is none of the encoder's: .* to 2 "):
        SinglePass(bart).embed([[5, 2]], layer=-4, stack="encoder")
    with pytest.raises(RequestError, match="stack = 'encoder': the model has no encoder"):
        SinglePass(bloom).hidden_states([[5, 2]], stack="encoder")
    with pytest.raises(RequestError, match="decoder of a blenderbot model reads a reply"):
        SinglePass(blenderbot).attentions([[5, 2]], stack="decoder")
    with pytest.raises(RequestError, match="cross_attentions: only a decoder beside its encoder"):
        SinglePass(bart).states([[5, 2]], ["cross_attentions"], stack="encoder")
    with pytest.raises(RequestError, match="'max' is not one we have"):
        SinglePass(bart).states([[5, 2]], ["max"])
