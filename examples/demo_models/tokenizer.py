"""The tokenizer of the demo's models: a byte-level BPE learnt from their corpus, its files as a hub keeps them."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase, Replace, Sequence, Strip
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer

BOS, PAD, EOS, UNK, MASK = range(5)
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def learn(texts: Iterable[str], vocabulary: int, lowercase: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    # Indentation and wrapped lines are half of a docstring's tokens and say little.
    case = [Lowercase()] if lowercase else []
    tokenizer.normalizer = Sequence([*case, Replace(Regex(r"\s+"), " "), Strip()])
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = RobertaProcessing(("</s>", EOS), ("<s>", BOS), add_prefix_space=False)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """tokenizer.json and tokenizer_config.json, as AutoTokenizer and load_tokenizer read them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
