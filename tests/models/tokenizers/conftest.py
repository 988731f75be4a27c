"""Tiny tokenizers of each family, trained here on a few sentences, and text that is hard to cut."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as LibraryBackend

SENTENCES = [
    "The quick brown fox doesn't jump over the lazy dog, it's asleep!",
    "Hello world. Hello again, world? We'll see what they've been up to.",
    "naïve café, Zürich — ΟΔΥΣΣΕΥΣ and İstanbul 2024-01-31",
    "the cat sat on the mat; the cats sat on the mats\n\nand another 12345 lines",
    "今日は世界 你好世界 नमस्ते दुनिया مرحبا بالعالم، سلام",
    "(what?) no! yes... ok' 'quoted' \"double\" __under__ @@at@@ 😀😀",
]
BLOOM_WORD = r" ?[^(\s|[.,!?…。，、।۔،])]+"

# What tokenizers disagree about: special tokens inside text, odd spaces, contractions, case that changes length
_FRAGMENTS = [
    "<s>", "</s>", "<pad>", "<unk>", "<mask>", " <mask>", "  <mask> ", "<mask", "__start__", "__end__", "__unk__",
    "__null__", "__END__", "__", "_", "@@", "</w>", "__newln__", "\n", "'\n", ".\n", "\r\n", " \n", "\t", "  ",
    "\x00", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\ufeff", "it's", "n't", " 's", "'", "...", " .", "!?",
    "İ", "Σ", "ΑΣ", "ΑΣ.", "ǅ", "ß", "ﬁ", "é", "e\u0301", "👩\u200d👩\u200d👧", "\U000e0001", "the", " the", "Hello",
    "1234", "।", "،", "，",
]  # fmt: skip


@pytest.fixture(scope="session")
def hard_texts() -> st.SearchStrategy[str]:
    """Any text that UTF-8 can hold, rich in fragments that tokenizers disagree about."""
    pieces = st.one_of(st.sampled_from(_FRAGMENTS), st.sampled_from(SENTENCES), st.text(max_size=8))
    return st.lists(pieces, max_size=10).map("".join)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return SENTENCES


@pytest.fixture(scope="session")
def bart_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt in BART's form."""
    folder = tmp_path_factory.mktemp("bart")
    backend = _train_byte_bpe(pre_tokenizers.ByteLevel(False), ["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    _save_vocabulary(backend, folder)
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "BartTokenizer"})
    return folder


@pytest.fixture(scope="session")
def blenderbot_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt in Blenderbot's form, and nothing that names the family."""
    folder = tmp_path_factory.mktemp("blenderbot")
    backend = _train_byte_bpe(pre_tokenizers.ByteLevel(True), ["<pad>", "<s>", "</s>", "<unk>"], [])
    _save_vocabulary(backend, folder)
    return folder


@pytest.fixture(scope="session")
def bloom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json in BLOOM's form, with truncation and padding stored as trainers leave them behind."""
    folder = tmp_path_factory.mktemp("bloom")
    words = pre_tokenizers.Split(Regex(BLOOM_WORD), behavior="isolated")
    splits = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend = _train_byte_bpe(splits, ["<unk>", "<s>", "</s>", "<pad>"], [])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.enable_truncation(5)
    backend.enable_padding(pad_id=3, pad_token="<pad>", length=7)
    backend.save(str(folder / "tokenizer.json"))
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "BloomTokenizerFast", **roles})
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt in BlenderbotSmall's form; as in the real one, not every merge is a token."""
    folder = tmp_path_factory.mktemp("blenderbot_small")
    backend = LibraryBackend(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed")
    trainer = trainers.BpeTrainer(vocab_size=300, end_of_word_suffix="</w>", show_progress=False)
    backend.train_from_iterator([s.lower().replace("\n", " __newln__ ") for s in SENTENCES * 3], trainer)
    model = json.loads(backend.to_str())["model"]
    tokens = [t.removesuffix("</w>") if t.endswith("</w>") else t + "@@" for t in model["vocab"]]
    # Without some products of merges, and with each character as a word of its own
    kept = [t for number, t in enumerate(tokens) if number % 7 or not t.endswith("@@") or len(t) == 3]
    kept += [t[0] for t in tokens if len(t) == 3 and t.endswith("@@")]
    specials = ["__null__", "__start__", "__end__", "__unk__", "__newln__"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*specials, *kept]))}
    _write(folder / "vocab.json", vocabulary)
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_bytes(b"#version: 0.2\n" + merges.encode())
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "BlenderbotSmallTokenizer"})
    return folder


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a folder to change, with JSON files laid over it; None removes a file."""

    def copy(folder: Path, **files: object) -> Path:
        target = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, target)
        for stem, content in files.items():
            path = target / f"{stem}.json"
            path.unlink(missing_ok=True)
            if content is not None:
                _write(path, content)
        return target

    return copy


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Public tokenizers and corpora beside the checkout."""
    default = Path(__file__).parents[3].parent / "shared" / "data"
    folder = Path(os.environ.get("BATCHLOOM_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip("real data: set BATCHLOOM_REAL_DATA, or put it into ../shared/data beside the checkout")
    return folder


def _train_byte_bpe(splits: pre_tokenizers.PreTokenizer, first: list[str], last: list[str]) -> LibraryBackend:
    backend = LibraryBackend(models.BPE())
    backend.pre_tokenizer = splits
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=first, show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.add_special_tokens([AddedToken(token, lstrip=True, special=True) for token in last])
    return backend


def _save_vocabulary(backend: LibraryBackend, folder: Path) -> None:
    model = json.loads(backend.to_str())["model"]
    _write(folder / "vocab.json", dict(sorted(backend.get_vocab().items(), key=lambda item: item[1])))
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_bytes(b"#version: 0.2\n" + merges.encode())


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
