"""What the families promise beside their logits: stacks apart, one last position, refusals, half precision."""

import pytest
import torch
import transformers

from batchloom.models import load_model
from batchloom.models.errors import RequestError
from batchloom.models.families.stacks import clamp_half
from batchloom.models.layers.attention import EncoderMemory, PackedAttention
from batchloom.models.layers.positions import positions_of

BART = {
    "vocab_size": 83,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 30,
}
BLOOM = {"vocab_size": 83, "hidden_size": 24, "n_layer": 2, "n_head": 3, "pad_token_id": 3}
SPEAKING = (
    "BartForConditionalGeneration",
    "MBartForConditionalGeneration",
    "BlenderbotForConditionalGeneration",
    "BlenderbotSmallForConditionalGeneration",
)
DECODERS = (
    "BartForCausalLM",
    "MBartForCausalLM",
    "BlenderbotForCausalLM",
    "BlenderbotSmallForCausalLM",
    "BloomForCausalLM",
)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load("BartModel") -> our model of a tiny random checkpoint, made once."""
    folders = {}

    def make(architecture, **options):
        if architecture not in folders:
            family = architecture.split("For")[0].removesuffix("Model")
            sizes = BLOOM if family == "Bloom" else BART
            torch.manual_seed(0)
            config = getattr(transformers, f"{family}Config")(**sizes)
            folders[architecture] = tmp_path_factory.mktemp(architecture)
            getattr(transformers, architecture)(config).save_pretrained(folders[architecture])
        return load_model(str(folders[architecture]), **options)

    return make


def packed_ids(lengths, seed=0):
    return torch.randint(4, 83, (sum(lengths),), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", SPEAKING)
@torch.inference_mode()
def test_encoder_and_decoder_apart_give_what_they_give_together(load, architecture):
    model = load(architecture)
    source_lengths, target_lengths = [9, 4], [5, 5]
    source_N, target_N = packed_ids(source_lengths), packed_ids(target_lengths, 1)
    encoded_ND = model.encode(source_N, positions_of(source_lengths), PackedAttention(source_lengths, causal=False))
    keys_values = model.cross_keys_values(encoded_ND)
    assert len(keys_values) == model.num_layers
    assert keys_values[0][0].shape == (13, model.num_heads, model.head_dim)
    context = PackedAttention(target_lengths, causal=True, cross=EncoderMemory(source_lengths, keys_values))
    logits_NV = model.logits(model.decode(target_N, positions_of(target_lengths), context))
    padded = torch.ones(2, 9, dtype=torch.long)
    padded[0], padded[1, :4] = source_N[:9], source_N[9:]
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    together = model(padded, mask, target_N.view(2, 5))
    assert torch.allclose(logits_NV.view(2, 5, -1), together, atol=1e-6)


@pytest.mark.parametrize("architecture", [*SPEAKING, *DECODERS])
@torch.inference_mode()
def test_the_last_layer_at_one_position_gives_that_position(load, architecture):
    model = load(architecture)
    lengths = [7, 1, 12, 6]
    ids_N = packed_ids(lengths)
    memory = model.memory(ids_N, lengths) if model.is_encoder_decoder else None
    context = PackedAttention(lengths, causal=True, alibi_slopes=model.alibi_slopes, cross=memory)
    hidden_ND = model.decode(ids_N, positions_of(lengths), context)
    last_BD = model.decode_last(ids_N, positions_of(lengths), context)
    assert torch.allclose(last_BD, hidden_ND[context.last_tokens(ids_N.device)], atol=1e-6)


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_row_does_not_depend_on_its_neighbours(load, architecture):
    model = load(architecture)
    ids = packed_ids([12] * 5).view(5, 12)
    alone = torch.cat([model(row[None]) for row in ids])
    assert torch.allclose(model(ids), alone, atol=1e-6)


@pytest.mark.parametrize("architecture", DECODERS)
def test_padding_changes_nothing_wherever_it_stands(load, architecture):
    """Between tokens only where there are no positions: elsewhere it is refused."""
    model, ids = load(architecture), packed_ids([6]).view(1, 6)
    between = [0, 1, 0, 1, 1, 1, 0, 1, 1] if model.max_positions is None else [0, 0, 1, 1, 1, 1, 1, 1, 0]
    places = torch.tensor(between).bool()
    padded = torch.full((1, 9), 1)
    padded[:, places] = ids
    logits = model(padded, places[None])
    assert torch.allclose(logits[:, places], model(ids), atol=1e-6)
    assert not logits[:, ~places].any()


@pytest.mark.parametrize("architecture", SPEAKING[2:])
def test_blenderbots_demand_decoder_ids(load, architecture):
    with pytest.raises(RequestError, match="needs decoder_input_ids"):
        load(architecture)(packed_ids([5]).view(1, 5))


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("BartForCausalLM", ("encoder_hidden_states", "encoder_attention_mask")),
        ("BlenderbotForCausalLM", ("encoder_hidden_states", "encoder_attention_mask")),
        ("BlenderbotSmallForCausalLM", ("encoder_hidden_states", "encoder_attention_mask")),
        ("BartForQuestionAnswering", ("start_positions", "end_positions", "inputs_embeds", "decoder_inputs_embeds")),
        ("BloomForQuestionAnswering", ("start_positions", "end_positions", "inputs_embeds")),
    ],
)
def test_what_a_forward_does_without_is_a_type_error(load, architecture, names):
    model = load(architecture)
    for name in names:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            model(packed_ids([5]).view(1, 5), **{name: torch.ones(1, 5)})


def test_mbart_makes_decoder_ids_that_begin_with_each_texts_last_token(load):
    """That token is the language code, and no one id: the reference rotates a text where BART shifts it."""
    shifted_N = load("MBartForConditionalGeneration").shifted(torch.tensor([5, 6, 2, 70, 8, 2, 71]), [4, 3])
    assert shifted_N.tolist() == [70, 5, 6, 2, 71, 8, 2]


def test_decoder_ids_for_a_decoder_alone_are_refused(load):
    with pytest.raises(RequestError, match="has no encoder"):
        load("BartForCausalLM")(packed_ids([5]).view(1, 5), None, packed_ids([5]).view(1, 5))


def test_ids_outside_the_vocabulary_and_rows_too_long_are_refused(load):
    model = load("BartForConditionalGeneration")
    with pytest.raises(RequestError, match="ids from 5 to 83"):
        model(torch.tensor([[5, 83]]))
    with pytest.raises(RequestError, match="31 tokens a row; the model has 30 positions"):
        model(packed_ids([31]).view(1, 31))
    with pytest.raises(RequestError, match=r"rows \[1\] without a token"):
        model(packed_ids([3, 3]).view(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    with pytest.raises(RequestError, match="shape of input_ids"):
        model(packed_ids([3, 3]).view(2, 3), torch.ones(2, 4))
    with pytest.raises(RequestError, match="decoder_input_ids hold 1 rows, input_ids 2"):
        model(packed_ids([3, 3]).view(2, 3), decoder_input_ids=packed_ids([3]).view(1, 3))


def test_a_text_without_an_end_token_cannot_be_classified(load):
    with pytest.raises(RequestError, match="Row 1 has no end token"):
        load("BartForSequenceClassification")(torch.tensor([[5, 2], [5, 6]]))


def test_tokens_after_the_last_end_token_do_not_change_a_class(load):
    model = load("BartForSequenceClassification")
    encoded_alike = torch.tensor([[0, 5, 2, 9, 2], [0, 5, 2, 9, 2]])
    assert model(encoded_alike).shape == (2, 3)
    shorter, longer = torch.tensor([[0, 5, 2]]), torch.tensor([[0, 5, 2, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    assert torch.allclose(model(shorter), model(longer, mask), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", [*SPEAKING[:1], "BloomForCausalLM", "BartForSequenceClassification"])
def test_half_precision_stays_near_float32(load, architecture, dtype):
    """8 bits of mantissa through four layers: 2 % of logits near 0.5 is what rounding alone gives."""
    ids = torch.cat((packed_ids([11] * 3).view(3, 11), torch.full((3, 1), 2)), dim=1)
    full, half = load(architecture)(ids), load(architecture, dtype=dtype)(ids)
    assert half.dtype == getattr(torch, dtype)
    assert (full - half.float()).abs().max() < 0.02


def test_float16_is_clamped_and_other_dtypes_are_not():
    values = torch.tensor([70000.0, -70000.0, 3.0])
    limit = 64512.0  # the float16 next to its maximum less 1000
    assert clamp_half(values.half()).tolist() == [limit, -limit, 3.0]
    assert clamp_half(values).tolist() == values.tolist()
