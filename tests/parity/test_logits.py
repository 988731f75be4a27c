"""Logits equal the reference's, one row for each architecture and each configuration trait.

The bound, 2e-5 for logits of a size near 1: both sides compute in float32, whose relative rounding is 6e-8, and add up
in another order (packed or padded products, fused or separate projections, ALiBi inside or outside the dot product).
Sums of a few hundred terms through three layers turn that into 2e-6 at most here, measured; a wrong formula shows as
1e-4 and more (the tanh form of GELU in place of the exact one: 2e-4; a missing embedding scale before a norm: 4e-4).
The random weights are scaled up fivefold against the usual initialization, so that attention is far from uniform and a
wrong mask or position cannot hide.
"""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from batchloom.models import describe, load_model
from batchloom.models.errors import RequestError

BOUND = 2e-5
BART_LIKE = {
    "vocab_size": 103,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 72,
    "decoder_ffn_dim": 60,
    "max_position_embeddings": 64,
}
BLOOM = {"vocab_size": 103, "hidden_size": 48, "n_layer": 3, "n_head": 4, "pad_token_id": 3}
THREE_LABELS = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
FIVE_LABELS = {"id2label": {i: f"L{i}" for i in range(5)}, "label2id": {f"L{i}": i for i in range(5)}}

TRAITS = [
    *[
        (f"{family}{head}", "plain", {})
        for family in ("Bart", "MBart", "Blenderbot", "BlenderbotSmall")
        for head in ("Model", "ForConditionalGeneration", "ForCausalLM")
    ],
    *[
        (f"{family}{head}", trait, changes)
        for family in ("Bart", "MBart", "Blenderbot", "BlenderbotSmall")
        for head in ("ForConditionalGeneration", "ForCausalLM")
        for trait, changes in {
            "scale_embedding": {"scale_embedding": True},
            "untied head": {"tie_word_embeddings": False},
        }.items()
    ],
    *[
        ("BartForConditionalGeneration", f"activation {name}", {"activation_function": name})
        for name in (
            *("relu", "gelu_new", "silu", "gelu_fast", "quick_gelu", "tanh", "mish", "relu2", "gelu_accurate"),
            *("gelu_10", "sqrtsoftplus", "prelu", "xielu"),
        )
    ],
    ("BlenderbotForConditionalGeneration", "activation prelu", {"activation_function": "prelu"}),
    ("BartForSequenceClassification", "plain", {}),
    ("BartForSequenceClassification", "five labels", FIVE_LABELS),
    ("BartForSequenceClassification", "multi-label", {"problem_type": "multi_label_classification", **FIVE_LABELS}),
    ("BartForSequenceClassification", "regression", {"problem_type": "regression", "id2label": {0: "score"}}),
    ("BartForSequenceClassification", "mnli labels, scaled embedding", {"scale_embedding": True, **THREE_LABELS}),
    ("BartForQuestionAnswering", "plain", {}),
    ("MBartForConditionalGeneration", "activation relu", {"activation_function": "relu"}),
    ("MBartForSequenceClassification", "plain", {}),
    ("MBartForSequenceClassification", "five labels, scaled embedding", {"scale_embedding": True, **FIVE_LABELS}),
    ("MBartForQuestionAnswering", "plain", {}),
    ("BloomModel", "plain", {}),
    ("BloomForCausalLM", "plain", {}),
    ("BloomForCausalLM", "untied head", {"tie_word_embeddings": False}),
    ("BloomForCausalLM", "residual after the norm", {"apply_residual_connection_post_layernorm": True}),
    ("BloomForCausalLM", "epsilon 1e-3", {"layer_norm_epsilon": 1e-3}),
    *[("BloomForCausalLM", f"{heads} heads (ALiBi)", {"n_head": heads}) for heads in (1, 2, 3, 6, 12, 16)],
    ("BloomForSequenceClassification", "plain", {}),
    ("BloomForSequenceClassification", "five labels", FIVE_LABELS),
    ("BloomForSequenceClassification", "padding id is the end token", {"pad_token_id": 2}),
    ("BloomForTokenClassification", "five labels", FIVE_LABELS),
    ("BloomForQuestionAnswering", "plain", {}),
]


def reference_model(architecture, changes, seed=0):
    """The reference with random weights, stronger than its own initialization."""
    family = architecture.split("For")[0].removesuffix("Model")
    base = BLOOM if family == "Bloom" else BART_LIKE
    config = getattr(transformers, f"{family}Config")(**(base | changes))
    config.architectures = [architecture]
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(config).eval().float()  # xielu makes its parameters in bfloat16
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
            elif "norm" in name or "ln_f" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(0, 0.2)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model


def batches(num_rows, max_length, seed):
    """Right-padded ids with lengths from 1 to the maximum, each row ending in the end token (2)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [max_length, 1, max_length - 1, max_length // 2, 7][:num_rows]
    ids = torch.randint(4, 100, (num_rows, max_length), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, length - 1] = 2
        mask[row, :length] = 1
    return ids, mask


def outputs_of(result):
    """The tensors of a reference's output that its architecture is about."""
    for names in (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",)):
        if all(getattr(result, name, None) is not None for name in names):
            return tuple(getattr(result, name) for name in names)
    raise AssertionError(type(result))


def difference(reference, model, ids, mask, decoder_ids):
    pad = reference.config.pad_token_id
    arguments = {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}
    if decoder_ids is not None:
        arguments["decoder_input_ids"] = decoder_ids
    with torch.no_grad():
        # use_cache=False: the reference's cache counts the encoder's layers where a decoder stands alone, and fails
        expected = outputs_of(reference(**arguments, use_cache=False))
    found = model(**arguments)
    found = found if isinstance(found, tuple) else (found,)
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        gap = (one - other).abs()
        if decoder_ids is None and gap.dim() > 1 and gap.shape[:2] == mask.shape:
            gap = gap[mask.bool()]
        worst = max(worst, float(gap.max()))
    return worst


@pytest.mark.parametrize(("architecture", "trait", "changes"), TRAITS, ids=lambda value: str(value)[:40])
def test_logits_equal_the_references(architecture, trait, changes, tmp_path, table):
    reference = reference_model(architecture, changes)
    reference.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert type(model).__name__ == architecture
    demands_decoder_ids = architecture.startswith("Blenderbot") and not architecture.endswith("CausalLM")
    worst = 0.0
    for num_rows in (1, 5):
        ids, mask = batches(num_rows, 64, seed=num_rows)
        decoder_ids = torch.randint(0, 103, (num_rows, 9)) if demands_decoder_ids else None
        worst = max(worst, difference(reference, model, ids, mask, decoder_ids))
        if architecture.removeprefix("M") in ("BartModel", "BartForConditionalGeneration", "BartForQuestionAnswering"):
            decoder_ids = torch.randint(0, 103, (num_rows, 11))
            worst = max(worst, difference(reference, model, ids, mask, decoder_ids))
    table.append((architecture, trait, worst))
    assert worst < BOUND


@pytest.mark.parametrize(
    ("file", "loaded"),
    [
        ("BartModel", "BartForCausalLM"),
        ("BartForConditionalGeneration", "BartForCausalLM"),
        ("BlenderbotForConditionalGeneration", "BlenderbotForCausalLM"),
        ("MBartForConditionalGeneration", "MBartForCausalLM"),
        ("BlenderbotSmallForConditionalGeneration", "BlenderbotSmallForCausalLM"),
    ],
)
def test_the_decoder_of_an_encoder_decoder_is_the_references(file, loaded, tmp_path, table):
    """As the reference's pages load facebook/bart-base and blenderbot-400M-distill.

    Of a file with shared.weight alone, as transformers 5 writes, the reference's decoder gets random embeddings (issue
    17375 of transformers, 5.23 still), so it is asked of a file that has them under each name, and both are loaded.
    """
    whole, copied = tmp_path / "whole", tmp_path / "copied"
    for folder in (whole, copied):
        reference_model(file, {}).save_pretrained(folder)
    write_tied_copies(copied)
    reference, told = getattr(transformers, loaded).from_pretrained(copied, output_loading_info=True)
    assert not told["missing_keys"]
    ids, mask = batches(5, 64, seed=5)
    for folder in (whole, copied):
        model = load_model(describe(str(folder), changes={"architectures": [loaded]}).pinned)
        assert type(model).__name__ == loaded
        worst = difference(reference.eval(), model, ids, mask, None)
        table.append((loaded, f"weights of {file}, {folder.name}", worst))
        assert worst < BOUND


def write_tied_copies(folder):
    """Write shared.weight under the decoder's and the encoder's name too, as facebook/bart-base has it."""
    tensors = load_file(folder / "model.safetensors")
    (shared,) = (name for name in tensors if name.endswith("shared.weight"))
    for stack in ("encoder", "decoder"):
        tensors[shared.replace("shared", f"{stack}.embed_tokens")] = tensors[shared].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_masked_tokens_between_others_are_left_out_as_in_the_reference(tmp_path, table):
    reference = reference_model("BloomForCausalLM", {})
    reference.save_pretrained(tmp_path)
    ids, mask = batches(5, 64, seed=6)
    mask[0, [5, 6, 20]] = mask[4, 2] = 0
    worst = difference(reference, load_model(str(tmp_path)), ids, mask, None)
    table.append(("BloomForCausalLM", "masked tokens between others", worst))
    assert worst < BOUND


def test_masked_tokens_between_others_are_refused_where_positions_are_learned(tmp_path):
    """They were left out, and the reference counts them as positions."""
    reference_model("BartForConditionalGeneration", {}).save_pretrained(tmp_path)
    ids, mask = batches(5, 64, seed=6)
    mask[3, 2] = 0
    with pytest.raises(RequestError, match=r"zeros between the tokens of rows \[3\]"):
        load_model(str(tmp_path))(ids, mask)
