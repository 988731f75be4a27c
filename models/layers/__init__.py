"""The pieces that the families share. They know tensors and the tensor-parallel group, and no family."""
