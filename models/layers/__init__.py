"""The layers that model families share. They know tensors and the tensor-parallel group, and no family."""
