"""Read a vocabulary and its merges from vocab.json and merges.txt, or from tokenizer.json. It knows no family."""

from pathlib import Path

from batchloom.models.errors import TokenizerError
from batchloom.models.tokenizers.settings import read_json

Merges = list[tuple[str, str]]


def read_vocabulary(folder: Path) -> tuple[dict[str, int], Merges]:
    """Return the token ids by token, and the merges in order.

    Raises: TokenizerError where files are missing or not readable, or hold another model than BPE.
    """
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]
    if not missing:
        return read_json(folder / "vocab.json"), read_merges(folder / "merges.txt")
    model = read_json(folder / "tokenizer.json").get("model")
    if model is None:
        raise TokenizerError(
            f"there is no tokenizer: expected tokenizer.json, or vocab.json and merges.txt; "
            f"tokenizer.json and {' and '.join(missing)} are missing. Copy them there."
        )
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise TokenizerError(f"tokenizer.json holds a {model.get('type')} model, expected BPE.")
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return model["vocab"], [(left, right) for left, right in pairs]


def read_merges(path: Path) -> Merges:
    """Return the pairs of a merges.txt in order, without a first line of "#version"; lines may end in CRLF.

    Raises: TokenizerError where it is not UTF-8, or with the number of a line that is not two tokens.
    """
    # Only \n ends a line: str.splitlines would also split at U+0085 and others, which tokens may contain
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path.name} is not UTF-8: {error}. Fetch it again.") from error
    merges = []
    for number, line in enumerate((line.removesuffix("\r") for line in lines), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(f"{path.name}:{number}: expected two tokens, found {line!r}. Fetch it again.")
        merges.append((left, right))
    return merges
