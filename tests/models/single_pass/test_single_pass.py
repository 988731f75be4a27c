"""SinglePass gives each sequence what a forward of it alone gives, in the order asked, also when memory runs out."""

import pytest
import torch
import transformers

from batchloom.models import load_model
from batchloom.models.device import is_out_of_memory
from batchloom.models.errors import RequestError, UnsupportedModelError
from batchloom.models.layers.grouped_attention import GroupedAttention
from batchloom.models.layers.product_attention import ProductAttention
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
    "max_position_embeddings": 40,
}
BLOOM = {"vocab_size": 83, "hidden_size": 24, "n_layer": 2, "n_head": 3, "pad_token_id": 3}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    loaded = {}

    def make(architecture, dtype="float32"):
        if (architecture, dtype) not in loaded:
            family = architecture.split("For")[0].removesuffix("Model")
            torch.manual_seed(0)
            config = getattr(transformers, f"{family}Config")(**(BLOOM if family == "Bloom" else BART))
            folder = tmp_path_factory.mktemp(architecture)
            getattr(transformers, architecture)(config).save_pretrained(folder)
            loaded[architecture, dtype] = load_model(str(folder), dtype=dtype)
        return loaded[architecture, dtype]

    return make


def texts(num_texts=23, longest=39, seed=0):
    """Token lists of many lengths, each with the end token last."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (num_texts,), generator=generator).tolist()
    return [[*torch.randint(4, 83, (n,), generator=generator).tolist(), 2] for n in lengths]


CLOSE = {"atol": 2e-6, "rtol": 1e-5}


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 100000])
@pytest.mark.parametrize("architecture", ["BartForSequenceClassification", "BloomForSequenceClassification"])
def test_classes_equal_each_text_alone(load, architecture, max_batch_tokens):
    model = load(architecture)
    found = SinglePass(model, max_batch_tokens).classify(texts())
    alone = torch.cat([model(torch.tensor([text])) for text in texts()])
    assert torch.allclose(found, alone, **CLOSE)


def test_token_classes_equal_each_text_alone(load):
    model = load("BloomForTokenClassification")
    for found, text in zip(SinglePass(model, 64).token_logits(texts()), texts(), strict=True):
        assert torch.allclose(found, model(torch.tensor([text]))[0], **CLOSE)


@pytest.mark.parametrize("architecture", ["BartForQuestionAnswering", "BloomForQuestionAnswering"])
def test_spans_equal_each_text_alone(load, architecture):
    model = load(architecture)
    for (start, end), text in zip(SinglePass(model, 64).spans(texts()), texts(), strict=True):
        expected_start, expected_end = model(torch.tensor([text]))
        assert torch.allclose(start, expected_start[0], **CLOSE)
        assert torch.allclose(end, expected_end[0], **CLOSE)


@pytest.mark.parametrize("architecture", ["BartModel", "BloomModel"])
def test_embeddings_pool_hidden_states(load, architecture):
    model = load(architecture)
    single_pass = SinglePass(model, 64)
    hidden = [model(torch.tensor([text]))[0] for text in texts()]
    mean, cls, last = (single_pass.embed(texts(), pooling=pooling) for pooling in ("mean", "cls", "last"))
    assert torch.allclose(mean, torch.stack([h.mean(0) for h in hidden]), **CLOSE)
    assert torch.allclose(cls, torch.stack([h[0] for h in hidden]), **CLOSE)
    assert torch.allclose(last, torch.stack([h[-1] for h in hidden]), **CLOSE)
    assert torch.allclose(single_pass.embed(texts(), normalize=True).norm(dim=1), torch.ones(23))
    with pytest.raises(RequestError, match="'max'"):
        single_pass.embed(texts(), pooling="max")


def test_blenderbots_embed_by_their_encoder(load):
    assert SinglePass(load("BlenderbotModel")).embed(texts()).shape == (23, 24)


@pytest.mark.parametrize("architecture", ["BloomForCausalLM", "BartForCausalLM"])
def test_scores_equal_the_log_softmax_of_all_logits(load, architecture, monkeypatch):
    monkeypatch.setattr("batchloom.models.single_pass.single_pass.HEAD_POSITIONS", 7)
    model = load(architecture)
    for scores, text in zip(SinglePass(model, 64).score(texts()), texts(), strict=True):
        log_probs = model(torch.tensor([text]))[0].log_softmax(-1)
        expected = log_probs[:-1].gather(1, torch.tensor(text[1:])[:, None])[:, 0]
        assert torch.allclose(scores.log_probs, expected, **CLOSE)
        assert scores.total == pytest.approx(float(expected.sum()), abs=1e-4)


@pytest.mark.parametrize("architecture", ["BartForConditionalGeneration", "BlenderbotForConditionalGeneration"])
def test_targets_are_scored_given_their_sources(load, architecture):
    model = load(architecture)
    targets = texts(longest=9, seed=1)
    for scores, text, target in zip(SinglePass(model, 64).score(texts(), targets), texts(), targets, strict=True):
        decoder_ids = torch.tensor([[model.config.decoder_start_token_id, *target[:-1]]])
        log_probs = model(torch.tensor([text]), None, decoder_ids)[0].log_softmax(-1)
        expected = log_probs.gather(1, torch.tensor(target)[:, None])[:, 0]
        assert torch.allclose(scores.log_probs, expected, **CLOSE)


def test_the_likeliest_tokens_at_some_positions_are_those_of_all_logits(load):
    model = load("BartForConditionalGeneration")
    positions = [[0, len(text) - 1] for text in texts()]
    for (ids, probabilities), text in zip(
        SinglePass(model, 64).top_tokens(texts(), positions, 3), texts(), strict=True
    ):
        expected = model(torch.tensor([text]))[0][[0, -1]].softmax(-1).topk(3)
        assert torch.equal(ids, expected.indices)
        assert torch.allclose(probabilities, expected.values, **CLOSE)


def test_nothing_asked_gives_nothing(load):
    assert SinglePass(load("BartForSequenceClassification")).classify([]).shape == (0, 3)
    assert SinglePass(load("BloomForCausalLM")).score([]) == []
    assert [len(s.log_probs) for s in SinglePass(load("BloomForCausalLM")).score([[5]])] == [0]


def test_a_bad_sequence_is_named_and_can_be_found_beforehand(load):
    single_pass = SinglePass(load("BartForSequenceClassification"))
    with pytest.raises(RequestError, match="Sequence 1: Ids from 2 to 83"):
        single_pass.classify([[5, 2], [83, 2]])
    with pytest.raises(RequestError, match="41 tokens are more than the model's 40 positions"):
        single_pass.check([5] * 40 + [2])
    with pytest.raises(RequestError, match="empty"):
        single_pass.check([])
    with pytest.raises(RequestError, match="no end token"):
        single_pass.check([5, 6])


def test_a_model_without_the_head_is_refused(load):
    with pytest.raises(UnsupportedModelError, match="BartModel is not a sequence classifier"):
        SinglePass(load("BartModel")).classify(texts())


class SmallMemory:
    """A model whose forward fails beyond some tokens, as a device does whose memory is full."""

    def __init__(self, model, limit, error):
        self._model, self._limit, self._error = model, limit, error
        self.batches = []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def class_logits(self, ids_N, lengths):
        self.batches.append(len(ids_N))
        if len(ids_N) > self._limit:
            raise self._error
        return self._model.class_logits(ids_N, lengths)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_runs_out_of_memory_is_halved_and_tried_again(load, error):
    model = load("BartForSequenceClassification")
    small = SmallMemory(model, limit=60, error=error)
    single_pass = SinglePass(small, max_batch_tokens=400)
    assert torch.allclose(single_pass.classify(texts()), SinglePass(model).classify(texts()), **CLOSE)
    failures = [tokens for tokens in small.batches if tokens > 60]
    # The budget stays halved: it does not fail at each batch, though each worker may have begun one by then.
    assert 1 <= len(failures) <= 3 * torch.get_num_threads()
    assert single_pass.max_batch_tokens <= 100


def test_one_sequence_that_does_not_fit_is_an_error(load):
    small = SmallMemory(load("BartForSequenceClassification"), limit=10, error=ERRORS[0])
    with pytest.raises(torch.OutOfMemoryError):
        SinglePass(small).classify([[5] * 30 + [2]])


def test_other_errors_are_not_taken_for_lack_of_memory(load):
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    broken = SmallMemory(load("BartForSequenceClassification"), limit=10, error=RuntimeError("broken kernel"))
    with pytest.raises(RuntimeError, match="broken kernel"):
        SinglePass(broken).classify(texts())
    assert 1 <= len(broken.batches) <= torch.get_num_threads()


def test_a_target_that_cannot_be_scored_is_named(load):
    single_pass = SinglePass(load("BartForConditionalGeneration"))
    for target, message in (([], "empty"), ([5, 10**6], "1000000"), ([-1], "-1")):
        with pytest.raises(RequestError, match=f"Sequence 1: Target 0: .*{message}"):
            single_pass.score([[5, 6, 2], [7, 2]], targets=[[9, 2], target])


def test_positions_that_are_not_there_are_named(load):
    single_pass = SinglePass(load("BartForConditionalGeneration"))
    with pytest.raises(RequestError, match=r"2 sequences came with 1 lists of positions"):
        single_pass.top_tokens([[5, 6, 2], [7, 2]], [[1]], 3)
    with pytest.raises(RequestError, match=r"Sequence 1 has no positions \[2, -1\]: it has 2 tokens"):
        single_pass.top_tokens([[5, 6, 2], [7, 2]], [[1], [0, 2, -1]], 3)


def test_a_cpu_computes_a_batch_a_thread(load, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert SinglePass(load("BartForSequenceClassification"))._batches.num_workers == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["BartForSequenceClassification", "BloomForSequenceClassification"])
def test_padding_is_counted_as_attention_computes_it(load, architecture, dtype, monkeypatch):
    """Single passes once reported their tokens as positions, however much attention had padded."""
    computed = []
    for kind in (GroupedAttention, ProductAttention):

        def attend(plan, *arguments, attend=kind.__call__, **keywords):
            computed.append(plan.num_positions)
            return attend(plan, *arguments, **keywords)

        monkeypatch.setattr(kind, "__call__", attend)
    single_pass = SinglePass(load(architecture, dtype), max_batch_tokens=10**6, num_workers=1)
    expected = 0
    for batch in (texts(), texts(num_texts=9, seed=1)):
        computed.clear()
        single_pass.classify(batch)
        expected += computed[0]  # of the first layer that attends: each batch's whole input
    assert single_pass.stats.num_positions == expected
    assert single_pass.stats.num_tokens == sum(map(len, [*texts(), *texts(num_texts=9, seed=1)]))
    assert single_pass.stats.num_batches == 2
    if dtype == "float32":
        assert single_pass.stats.num_positions > single_pass.stats.num_tokens, "no text here was padded"
