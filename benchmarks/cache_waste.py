"""Bytes of cache per live token, and reserved over used, while requests of mixed lengths come and go.

    python -m benchmarks.cache_waste --documents 96

A token is live while a running sequence can see it: a prompt's tokens once a request (once for all where prompts begin
alike), a new token as long as a sequence descends from it. Used: live tokens times what one takes in all layers.
Reserved: every tensor that holds keys and values. Means over all steps; the lengths of benchmarks/engine.py, a narrow
model, since the ratio does not depend on its width.
"""

import argparse
import tempfile
from typing import Any

import torch
import transformers

from batchloom.models import Engine, GenerationParams, load_model
from batchloom.models.device import bytes_per_token
from benchmarks import record
from benchmarks.engine import Workload, corpus

RUNS = {
    "greedy, 64 new": Workload("bart", 301, 64),
    "greedy, 8 to 128 new": Workload("bart", 301, 64, varying=True),
    "beam 4, 64 new": Workload("bart", 215, 64, num_beams=4),
    "beam 4, 8 to 128 new": Workload("bart", 215, 64, num_beams=4, varying=True),
    "BLOOM, 48 new": Workload("bloom", 120, 48),
    "BLOOM, 8 to 128 new": Workload("bloom", 120, 48, varying=True),
}
BART = {"d_model": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 2}
HEADS = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--slots", type=int, default=128)
    record.add_options(parser)
    options = parser.parse_args()
    models = {name: narrow(name) for name in ("bart", "bloom")}
    print(f"{'':22s} {'bytes a live token':>18s} {'of one token':>13s} {'reserved / used':>16s} {'worst step':>11s}")
    figures = []
    for name, work in RUNS.items():
        model = models[work.checkpoint]
        steps = measured(model, work, options.documents, options.slots)
        reserved, live = sum(step[0] for step in steps), sum(step[1] for step in steps)
        one = bytes_per_token(model)
        ratio = reserved / (live * one)
        peak = max(step[0] / (step[1] * one) for step in steps)
        print(f"{name:22s} {reserved / live:18.0f} {one:13d} {ratio:16.3f} {peak:11.2f}")
        for what, value, unit in (
            ("bytes a live token", reserved / live, "bytes"),
            ("reserved over used", ratio, "times"),
            ("reserved over used, worst step", peak, "times"),
        ):
            figures.append(record.Figure(system="batchloom", what=f"{name}: {what}", value=value, unit=unit))
    title = f"cache that is reserved, {options.documents} documents, {options.slots} slots"
    workload = {"documents": options.documents, "slots": options.slots, "models": "narrow ones of two decoder layers"}
    record.write(options.results, "cache_waste", title, workload, figures)


def measured(model: Any, work: Workload, num_documents: int, num_slots: int) -> list[tuple[int, int]]:
    """Bytes reserved and live tokens after each step."""
    prompts, lengths = corpus(work, num_documents)
    engine = Engine(model, max_slots=num_slots, num_lanes=1)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        ids = [token % 900 + 5 for token in prompt]
        engine.add(row, ids, GenerationParams(max_new_tokens=length, min_new_tokens=length, num_beams=work.num_beams))
    steps = []
    while engine.num_unfinished:
        engine.step()
        (runner,) = engine._lanes.runners
        memories = {memory for own in runner._prompt_memories.values() for memory in own}
        pools = [pool for running in runner._running.values() for pool in running.cache.pools]
        reserved = sum(pool.num_bytes for pool in pools)
        reserved += sum(key.nbytes + value.nbytes for memory in memories for key, value in memory.layers)
        live = sum(memory.num_tokens for memory in memories) + sum(pool.num_live_entries for pool in pools)
        if live:
            steps.append((reserved, live))
    return steps


def narrow(kind: str) -> Any:
    """A model of one head and two layers, with a real model's positions."""
    torch.manual_seed(0)
    if kind == "bart":
        config: Any = transformers.BartConfig(vocab_size=1000, **BART, **HEADS, forced_eos_token_id=None)
        model: Any = transformers.BartForConditionalGeneration(config)
    else:
        config = transformers.BloomConfig(vocab_size=1000, hidden_size=64, n_layer=2, n_head=1, pad_token_id=3)
        model = transformers.BloomForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_model(folder, dtype="bfloat16", device="cpu")


if __name__ == "__main__":
    main()
