"""The ledger of an output folder: its parts, the manifest, and what verifies them."""
