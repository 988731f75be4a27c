"""Two processes that hold a model together give what one gives."""

import pytest
import torch
import torch.multiprocessing
import transformers

from models import load_model
from models.errors import DeviceError
from models.parallel import TensorParallel

BART = {
    "vocab_size": 83,  # odd: the second rank holds one row less
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 30,
}
BLOOM = {"vocab_size": 83, "hidden_size": 24, "n_layer": 2, "n_head": 6, "pad_token_id": 3}
ARCHITECTURES = (
    "BartForConditionalGeneration",
    "BartForSequenceClassification",
    "BlenderbotForConditionalGeneration",
    "BlenderbotSmallForConditionalGeneration",
    "BloomForCausalLM",
    "BloomForTokenClassification",
)


def inputs(architecture):
    ids = torch.randint(4, 83, (3, 10), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 2
    return (ids, None, ids[:, :6]) if architecture.startswith("Blenderbot") else (ids,)


def run_rank(rank, size, folders, meeting, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    found = {}
    for architecture, folder in folders.items():
        model = load_model(folder, tensor_parallel=size)
        found[architecture] = (model(*inputs(architecture)), sum(p.numel() for p in model.parameters()))
    torch.save(found, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_logits_of_one(tmp_path):
    folders = {}
    for architecture in ARCHITECTURES:
        family = architecture.split("For")[0]
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**(BLOOM if family == "Bloom" else BART))
        reference = getattr(transformers, architecture)(config)
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):  # a bias that every rank adds would show
                torch.nn.init.normal_(parameter)
        folders[architecture] = str(tmp_path / architecture)
        reference.save_pretrained(folders[architecture])
    torch.multiprocessing.spawn(run_rank, (2, folders, tmp_path / "meeting", str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for architecture, folder in folders.items():
            model = load_model(folder)
            logits, num_parameters = found[architecture]
            assert torch.allclose(logits, model(*inputs(architecture)), atol=1e-5), architecture
            assert num_parameters < 0.6 * sum(p.numel() for p in model.parameters()), architecture


def test_heads_that_do_not_divide_are_refused_with_sizes_that_do():
    with pytest.raises(DeviceError, match=r"does not divide 16 attention heads\. Use one of: 1, 2, 4, 8, 16"):
        TensorParallel(rank=0, size=3).share(16, "attention heads")
