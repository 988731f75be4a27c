"""What the leader can ask for, every follower can do."""

import ast
import pickle
from pathlib import Path

from batchloom.models.ranks.calls import REJOIN_MESSAGE, Call
from batchloom.models.ranks.follower import Follower

MODELS = Path(__file__).parents[3] / "models"


def test_a_follower_has_a_method_for_every_call():
    assert set(Follower.METHODS) == set(Call)
    for call, method in Follower.METHODS.items():
        assert getattr(Follower, call.name.lower()) is method


def test_every_call_is_sent_somewhere_and_by_its_member():
    """Calls were strings once, of which a misspelt one ended all ranks when it arrived."""
    sent = [
        node.args[0]
        for path in MODELS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "collective_call"
    ]
    members = [argument for argument in sent if isinstance(argument, ast.Attribute)]
    assert {Call[member.attr] for member in members} == set(Call) - {Call.REJOIN}
    others = [ast.unparse(argument) for argument in sent if argument not in members]
    assert others == ["call"]  # the group hands it to its followers


def test_the_message_to_rejoin_is_recognised_by_its_bytes():
    """A follower looks for it while a call runs, without unpickling what else arrives."""
    assert pickle.loads(pickle.dumps(REJOIN_MESSAGE)) == REJOIN_MESSAGE
    assert pickle.dumps((Call["REJOIN"], ())) == pickle.dumps(REJOIN_MESSAGE)
