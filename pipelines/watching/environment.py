"""What Ray says where a node cannot set up a job's environment (shipped code, packages), in one line."""

import re
import textwrap

LONGEST = 400  # characters of what the node said


def unready(message: str) -> str:
    """Return in one line why an environment is not there: Ray's message is a traceback of its agent on the node, which
    ends with what failed, mostly lines of pip."""
    node = re.search(r"^\[Node ([^\]]+)\]", message, re.MULTILINE)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    wrong = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    said = "; ".join(dict.fromkeys(wrong or lines[-1:] or ["no reason given"]))
    said = textwrap.shorten(said, LONGEST, placeholder=" ...")
    where = f"Node {node[1]}" if node else "A node"
    return (
        f"{where} could not set up the job's environment: {said.rstrip('.')}. Its runtime_env_setup-*.log, in Ray's "
        "folder of logs, has more. Nodes need pip and a package index; an image that has the packages needs neither."
    )
