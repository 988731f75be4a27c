"""Python runs this in every process of a job under test: a text with a chosen token ends the process that embeds it.

As a kernel bug of some driver would: by SIGKILL, without an exception. The rest of the program is as users have it.
"""

import importlib.abc
import importlib.util
import os
import signal
import sys


class PoisonedTorch(importlib.abc.MetaPathFinder):
    """Replace torch's embedding once torch is imported: token ids pass through it before anything is computed."""

    def find_spec(self, name, _path, _target=None):
        if name != "torch.nn.functional" or "BATCHLOOM_POISON_TOKEN" not in os.environ:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            embed, token = module.embedding, int(os.environ["BATCHLOOM_POISON_TOKEN"])

            def embedding(input_ids, weight, *args, **kwargs):
                if weight.shape[0] > 256 and bool((input_ids == token).any()):  # not the embedding of positions
                    os.kill(os.getpid(), signal.SIGKILL)
                return embed(input_ids, weight, *args, **kwargs)

            module.embedding = embedding

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, PoisonedTorch())
