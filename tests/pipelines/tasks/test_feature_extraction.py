"""Feature extraction against the reference's pipeline, pooled here."""

import numpy as np
import pyarrow as pa
import pytest
import transformers


def reference(folder, texts):
    """Hidden states [T, D] of each text."""
    tokenizer = (
        transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        if "bloom" in transformers.AutoConfig.from_pretrained(folder).model_type
        else transformers.BartTokenizerFast.from_pretrained(folder)
    )
    model = transformers.AutoModel.from_pretrained(folder)
    pipeline = transformers.pipeline("feature-extraction", model=model, tokenizer=tokenizer)
    return [np.array(pipeline(text)[0]) for text in texts]


POOLED = {"mean": lambda hidden: hidden.mean(0), "cls": lambda hidden: hidden[0], "last": lambda hidden: hidden[-1]}


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("architecture", ["BartModel", "BartForConditionalGeneration", "BloomForCausalLM"])
def test_embeddings_are_the_pooled_states_of_the_pipeline(
    ask, equal, make_checkpoint, make_sentences, architecture, pooling
):
    model, texts = make_checkpoint(architecture), make_sentences(6, seed=13, longest=20)
    part = ask("feature-extraction", model, {"text": [*texts, " "]}, options={"pooling": pooling})
    expected = [POOLED[pooling](hidden).tolist() for hidden in reference(model, texts)]
    assert part["embedding"][6].as_py() is None
    equal("feature-extraction", part["embedding"].to_pylist()[:6], expected, 2e-5)


def test_normalized_embeddings_have_length_one_and_can_be_halves(ask, make_checkpoint, make_sentences):
    options = {"normalize": True, "dtype": "float16"}
    part = ask("feature-extraction", make_checkpoint("BartModel"), {"text": make_sentences(4)}, options=options)
    assert part.schema.field("embedding").type == pa.list_(pa.float16())
    lengths = np.linalg.norm(np.array(part["embedding"].to_pylist(), dtype=np.float32), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)
