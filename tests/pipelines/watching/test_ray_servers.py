"""What does not answer any more is named, with since when."""

import socket

from batchloom.pipelines.watching.ray_servers import RayServers, Server, Silence, answers


def test_a_server_answers_until_it_is_gone() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()
    assert answers(address)
    server.close()
    assert not answers(address)


def test_silence_is_counted_from_its_start_and_ends_with_an_answer() -> None:
    now, silent = [0.0], set()
    servers = [Server("A", ("a", 1), 5.0), Server("B", ("b", 2), 7.0)]
    ray_servers = RayServers(servers, lambda address: address[0] not in silent, lambda: now[0])
    assert ray_servers.silences() == []
    silent.add("b")
    assert ray_servers.silences() == [Silence(servers[1], 0.0)]
    now[0] = 6.0
    silent.add("a")
    assert not any(silence.is_loss for silence in ray_servers.silences())
    now[0] = 7.0
    assert [str(silence) for silence in ray_servers.silences() if silence.is_loss] == ["B does not answer for 7 s"]
    silent.discard("b")
    assert ray_servers.silences() == [Silence(servers[0], 1.0)]
    silent.clear()
    assert ray_servers.silences() == []
