"""Compares config.json's sizes with the tensors of the files, before a model is built. It knows no torch.

Only tensors that tell a size are looked at; loading compares all of them. But a model of a billion layers cannot be
built, and weights that do not fit should not be found after minutes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from batchloom.models.errors import CheckpointError
from batchloom.models.families.config import ModelConfig, StackSize
from batchloom.models.families.table import family_of

# Prefixes of tensor names, which depend on the class that saved them.
PREFIXES = ("module.", "model.", "transformer.")
COMPILED = "_orig_mod."  # of a model, or a part of it, that torch.compile wrapped before it was saved
# The tensor whose rows are the labels, by how class names end.
HEADS = {
    "ForSequenceClassification": ("classification_head.out_proj.weight", "score.weight"),
    "ForTokenClassification": ("classifier.weight",),
}

Shapes = Mapping[str, tuple[int, ...]]


def check_sizes(config: ModelConfig, architecture: str, shapes: Shapes, where: str) -> None:
    """Raise CheckpointError, naming each tensor that is missing or of another shape than config.json says.

    `shapes` are those of the files' tensors by name, `where` begins the message.
    """
    shapes = {canonical(name): shape for name, shape in shapes.items()}
    problems = [*_embedding(config, shapes), *_head(config, architecture, shapes)]
    for stack in _stacks(config, architecture):
        problems += [*_depth(stack, shapes), *_inner_width(config, stack, shapes), *_positions(config, stack, shapes)]
    _raise(problems, where)


def check_depth(config: ModelConfig, architecture: str, names: Collection[str], where: str) -> None:
    """Raise CheckpointError where config.json has layers that the files have no tensors for, given their names."""
    own = [canonical(name) for name in names]
    _raise([problem for stack in _stacks(config, architecture) for problem in _depth(stack, own)], where)


def _raise(problems: Sequence[str], where: str) -> None:
    if problems:
        raise CheckpointError(
            f"{where}: config.json and the weights do not fit:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + "\nTake both from one place, or correct config.json."
        )


def _stacks(config: ModelConfig, architecture: str) -> list[StackSize]:
    return [stack for stack in (config.encoder_of(architecture), config.decoder) if stack is not None]


def canonical(name: str) -> str:
    """Return a tensor's name without its prefixes: model.encoder.layers.0... -> encoder.layers.0..."""
    name = name.replace(COMPILED, "")
    while (prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)) is not None:
        name = name.removeprefix(prefix)
    return name


def _embedding(config: ModelConfig, shapes: Shapes) -> Iterator[str]:
    expected = (config.vocab_size, config.width)
    for name in config.EMBEDDINGS:
        if shapes.get(name, expected) != expected:
            yield _differs(name, expected, shapes[name])


def num_labels_of(architecture: str, shapes: Shapes) -> int | None:
    """Return how many labels the head's tensor has, None where the class has no such head, or the files have none."""
    found = [shape for name, shape in _head_shapes(architecture, shapes).items() if len(shape) == 2]
    return found[0][0] if found else None


def _head_shapes(architecture: str, shapes: Shapes) -> Shapes:
    names = next((names for ending, names in HEADS.items() if architecture.endswith(ending)), ())
    own = {canonical(name): shape for name, shape in shapes.items()}
    return {name: own[name] for name in names if name in own}


def _head(config: ModelConfig, architecture: str, shapes: Shapes) -> Iterator[str]:
    for name, shape in _head_shapes(architecture, shapes).items():
        if shape[:1] != (config.num_labels,):
            yield (
                f"{name} should have {config.num_labels} rows, one for each label; the file has {list(shape)}. Set "
                f"model_options: {{num_labels: {shape[0] if shape else 0}}}"
            )


def _depth(stack: StackSize, names: Iterable[str]) -> Iterator[str]:
    begin = f"{stack.layers}."
    numbers = {name.removeprefix(begin).partition(".")[0] for name in names if name.startswith(begin)}
    num_found = len([number for number in numbers if number.isdecimal()])
    if num_found < stack.num_layers:
        yield (
            f"{begin}{num_found}.{stack.inner} is missing: {stack.layers} should be {stack.num_layers} layers; the "
            f"files have {num_found}"
        )


def _inner_width(config: ModelConfig, stack: StackSize, shapes: Shapes) -> Iterator[str]:
    name, expected = f"{stack.layers}.0.{stack.inner}", (stack.inner_width, config.width)
    if shapes.get(name, expected) != expected:
        yield _differs(name, expected, shapes[name])


def _positions(config: ModelConfig, stack: StackSize, shapes: Shapes) -> Iterator[str]:
    if stack.positions is None or config.max_positions is None:
        return
    expected = (config.max_positions + family_of(config).position_offset, config.width)
    if shapes.get(stack.positions, expected) != expected:
        yield _differs(stack.positions, expected, shapes[stack.positions])


def _differs(name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    return f"{name} should be {list(expected)}; the file has {list(found)}"
