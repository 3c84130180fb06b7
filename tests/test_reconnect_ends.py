"""When a saver that connects again gives up, is stopped, or never begins; and what it says meanwhile."""

import asyncio
import contextlib
import itertools
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from losing import listen_at
from streams import server_at

import ringmain
from ringmain import errors
from ringmain.flow import clients, next_client
from ringmain.net import redial
from ringmain.net.backoff import Backoff

Run = Callable[[Any], Any]


def lose(listener: socket.socket, size: int) -> bytes:
    """Accept a connection, take so many bytes, and reset it; listen no more."""
    sock, _ = listener.accept()
    listener.close()
    with sock:
        got = sock.recv(size, socket.MSG_WAITALL)
        peers.close_with_reset(sock)
    return got


def test_pauses_grow_from_a_tenth_of_a_second_to_the_longest_and_begin_anew_after_a_connection_that_lasted() -> None:
    backoff = Backoff(30.0)
    pauses = [backoff.next_pause() for _ in range(20)]
    assert all(0.1 <= pause <= 0.2 for pause in pauses[:1])
    assert all(15.0 <= pause <= 30.0 for pause in pauses[8:])
    assert len(set(pauses[8:])) > 1, "no two savers are to come back at once"
    assert all(pause > before / 2 for before, pause in itertools.pairwise(pauses))
    backoff.lasted(29.0)
    assert backoff.next_pause() >= 15.0, "what lasted no longer than the pause shows nothing"
    backoff.lasted(31.0)
    assert backoff.next_pause() <= 0.2


def test_receivers_that_are_killed_have_all_records_between_them_and_each_loss_is_one_warning(
    bench: peers.Bench,
) -> None:
    port = peers.free_port()
    saver: peers.Program | None = None
    copies, sent = [], 0
    for number in range(4):
        copy = bench.folder / f"copy-{number}"
        copies.append(copy)
        receiver = bench.ringmain("load", "--listen-once", "--output", copy, f"127.0.0.1:{port}")
        if saver is None:
            peers.wait_for_port(port)
            url = f"127.0.0.1:{port}"
            saver = bench.ringmain("save", "--reconnect", "--delimiter", r"\n", url, stdin=subprocess.PIPE)
        assert saver.process.stdin is not None
        for _ in range(50):  # the first ones while nobody listens, or to a connection that is dead
            saver.process.stdin.write(b"record %d\n" % sent)
            saver.process.stdin.flush()
            sent += 1
        last = b"record %d\n" % (sent - 1)
        peers.eventually(
            lambda copy=copy, last=last: copy.exists() and copy.read_bytes().endswith(last), "the last record"
        )
        if number < 3:
            receiver.signal(signal.SIGKILL)
            receiver.wait()
    saver.process.stdin.close()
    assert (saver.wait(), receiver.wait()) == (0, 0)
    records = [record for copy in copies for record in copy.read_bytes().split(b"\n")[:-1]]
    assert set(records) == {b"record %d" % number for number in range(sent)}
    assert saver.stderr.count("connecting again") == 3
    assert saver.stderr.count("\n") == 3


def test_a_file_goes_on_where_the_lost_connection_ended(bench: peers.Bench) -> None:
    data = peers.payload(3_000_000)
    port = peers.free_port()
    listener = listen_at(port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # else our kernel may take all of it
    saver = bench.ringmain("save", "--reconnect", "--input", bench.file(data), f"127.0.0.1:{port}")
    sock, _ = listener.accept()
    listener.close()
    with sock:
        got = sock.recv(1_000_000, socket.MSG_WAITALL)
        sock.shutdown(socket.SHUT_RDWR)  # our kernel acknowledges nothing more
        with contextlib.suppress(ConnectionResetError):  # by what the saver has sent since
            while chunk := sock.recv(1 << 16):
                got += chunk
        peers.close_with_reset(sock)
    with listen_at(port) as listener, listener.accept()[0] as sock:
        rest = peers.read_all(sock)
    assert saver.wait() == 0
    assert rest == data[-len(rest) :]
    assert len(got) + len(rest) >= len(data)
    assert data.startswith(got)


def test_progress_tells_which_try_it_is(bench: peers.Bench) -> None:
    port = peers.free_port()
    listener = listen_at(port)
    saver = bench.ringmain(
        "save", "--reconnect", "--progress", "-v", f"127.0.0.1:{port}", stdin=subprocess.PIPE, stdout=None
    )
    assert saver.process.stdin is not None
    saver.process.stdin.write(b"hello")
    saver.process.stdin.flush()
    assert lose(listener, 5) == b"hello"
    where = re.escape(f"waiting for 127.0.0.1:{port}")
    peers.eventually(lambda: re.search(where + r" \((2nd|3rd|[4-9]th) try\)", saver.stderr), "the line")
    with listen_at(port) as listener:
        saver.process.stdin.write(b" again")
        saver.process.stdin.close()
        with listener.accept()[0] as sock:
            assert peers.read_all(sock).endswith(b" again")
    assert saver.wait() == 0
    assert saver.stderr.count("connecting again") == 1


def test_a_signal_while_it_waits_ends_it_and_tells_what_may_be_lost(bench: peers.Bench) -> None:
    port = peers.free_port()
    listener = listen_at(port)
    saver = bench.ringmain("save", "--reconnect", "-v", f"127.0.0.1:{port}", stdin=subprocess.PIPE)
    assert saver.process.stdin is not None
    saver.process.stdin.write(b"hello")
    saver.process.stdin.flush()
    sock, _ = listener.accept()
    listener.close()
    with sock:
        assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
    saver.process.stdin.write(b"for nobody")
    saver.process.stdin.flush()
    saver.says("trying again")
    saver.signal(signal.SIGTERM)
    assert saver.wait() == 143
    assert f"127.0.0.1:{port}: the last 10 bytes may not have reached it\n" in saver.stderr


def test_retry_bounds_the_tries_after_a_loss_too(bench: peers.Bench) -> None:
    port = peers.free_port()
    listener = listen_at(port)
    saver = bench.ringmain("save", "--reconnect", "--retry", "2", "-v", f"127.0.0.1:{port}", stdin=subprocess.PIPE)
    assert saver.process.stdin is not None
    saver.process.stdin.write(b"hello")
    saver.process.stdin.flush()
    lose(listener, 5)
    assert saver.wait() == 7
    assert saver.stderr.count("trying again") == 2
    assert "connection refused" in saver.stderr.splitlines()[-1]


def test_a_peer_that_is_not_there_at_the_start_is_an_error_at_once(bench: peers.Bench) -> None:
    saver = bench.ringmain("save", "--reconnect", f"127.0.0.1:{peers.free_port()}")
    assert saver.wait() == 7
    assert saver.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reconnect", "--listen"], "--reconnect with --listen: a listener connects to nobody"),
        (["--delimiter", r"\n"], "add --reconnect"),
        (["--reconnect", "--delimiter", "x" * 17], "give 1 to 16 bytes"),
    ],
)
def test_options_that_contradict_each_other_are_refused(bench: peers.Bench, options: list[str], words: str) -> None:
    saver = bench.ringmain("save", *options, "127.0.0.1:1")
    assert saver.wait() == 2
    assert words in saver.stderr
    assert saver.stderr.count("\n") == 1


def test_the_kernel_path_is_refused(bench: peers.Bench) -> None:
    with server_at() as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        saver = bench.ringmain("save", "--reconnect", "--path", "kernel", url)
        assert saver.wait() == 2
    assert "--path kernel: what may have to be sent again is kept in blocks" in saver.stderr


def test_a_write_that_is_cancelled_while_it_waits_for_the_peer_has_done_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redial, "_LONGEST_PAUSE", 0.05)
    port = peers.free_port()

    async def main() -> bytes:
        listener = listen_at(port)
        losing = asyncio.create_task(asyncio.to_thread(lose, listener, 5))
        async with ringmain.save(f"127.0.0.1:{port}", reconnect=True) as saver:
            await saver.write(b"first")
            assert await losing == b"first"
            while saver.connections:
                await asyncio.sleep(0.01)
                waiting = asyncio.create_task(saver.write(b"x" * 20_000))
                await asyncio.wait([waiting], timeout=0.05)
                if not waiting.done():
                    break
            assert saver.try_number > 0
            assert "connecting" in repr(saver)
            waiting.cancel()
            await asyncio.wait([waiting])
            with listen_at(port) as again:
                taking = asyncio.create_task(asyncio.to_thread(take, again))
                await saver.write(b"the last words")
                await saver.end_connection()
                return await taking

    got = run(main())
    assert got.endswith(b"the last words")
    assert set(got.removesuffix(b"the last words").removeprefix(b"first")) <= set(b"x")


def test_a_peer_that_sends_nothing_more_and_reads_on_is_not_lost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_GRACE", 0.2)
    data = peers.payload(50_000)  # which our kernel takes, whoever reads it late

    def take_after_fin(listener: socket.socket) -> bytes:
        with listener.accept()[0] as sock:
            sock.shutdown(socket.SHUT_WR)
            return peers.read_all(sock)

    async def main() -> bytes:
        with server_at() as listener:
            taking = asyncio.create_task(asyncio.to_thread(take_after_fin, listener))
            async with ringmain.save(f"127.0.0.1:{listener.getsockname()[1]}", reconnect=True) as saver:
                await saver.write(data[:100])
                await asyncio.sleep(0.5)  # longer than a peer may stand still
                await saver.write(data[100:])
        return await taking

    assert peers.sha256(run(main())) == peers.sha256(data)


def is_reset(listener: socket.socket) -> bool:
    """Accept a connection; tell whether it ends in a reset."""
    with listener.accept()[0] as sock:
        return peers.ends_in_reset(sock)


def take(listener: socket.socket) -> bytes:
    """Accept a connection and read it to its end."""
    with listener.accept()[0] as sock:
        return peers.read_all(sock)


def test_a_plain_with_connects_again_too() -> None:
    port = peers.free_port()
    with ThreadPoolExecutor(1) as executor:
        losing = executor.submit(lose, listen_at(port), 5)
        with ringmain.save(f"127.0.0.1:{port}", reconnect=True) as saver:
            saver.write(b"first")
            assert losing.result(peers.TIMEOUT) == b"first"
            with listen_at(port) as listener:
                taking = executor.submit(take, listener)
                while not peers.established(port):  # nothing is heard of a loss between two calls
                    saver.wait_for_peer()
                    saver.write(b"again")
                saver.end_connection()
                assert taking.result(peers.TIMEOUT).endswith(b"again")


def test_who_waits_for_the_peer_hears_of_a_stop(run: Run) -> None:
    port = peers.free_port()

    async def main() -> None:
        losing = asyncio.create_task(asyncio.to_thread(lose, listen_at(port), 5))
        with pytest.raises(errors.SendError, match="stopped"):
            async with ringmain.save(f"127.0.0.1:{port}", reconnect=True) as saver:
                await saver.write(b"first")
                await losing
                asyncio.get_running_loop().call_later(0.1, saver.stop)
                while True:
                    await saver.wait_for_peer()
                    await saver.write(b"more")
                    await asyncio.sleep(0.01)

    run(main())


@pytest.mark.parametrize(
    ("second", "error", "words"),
    [("stranger", errors.UntrustedError, "unable to get local issuer"), ("wants ours", errors.TlsError, "certificate")],
)
def test_a_peer_that_comes_back_and_is_not_trusted_or_rejects_us_ends_it(
    run: Run, certificates: Certificates, second: str, error: type[errors.RingmainError], words: str
) -> None:
    port = peers.free_port()

    def context_of(chain: Path, client_ca: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
        context.load_cert_chain(chain)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def accept_both(listener: socket.socket) -> None:
        with listener, listener.accept()[0] as raw:
            with context_of(certificates.server).wrap_socket(raw, server_side=True) as sock:
                sock.recv(5)
                peers.close_with_reset(sock)
            other = context_of(certificates.stranger) if second == "stranger" else None
            other = other or context_of(certificates.server, certificates.ca)
            with listener.accept()[0] as raw, contextlib.suppress(OSError):  # the handshake fails on either side
                other.wrap_socket(raw, server_side=True).close()

    async def main() -> None:
        accepting = asyncio.create_task(asyncio.to_thread(accept_both, listen_at(port)))
        with pytest.raises(error, match=words):
            async with ringmain.save(f"tcps://127.0.0.1:{port}", cafile=str(certificates.ca), reconnect=True) as saver:
                while True:
                    await saver.write(b"hello")
                    await asyncio.sleep(0.01)
        await accepting

    run(main())


def test_an_idle_time_out_is_a_loss_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redial, "_LONGEST_PAUSE", 0.05)
    data = peers.payload(20_000_000)

    def stall_and_take(listener: socket.socket) -> bytes:
        with listener, listener.accept()[0], listener.accept()[0] as second:
            return peers.read_all(second)

    async def main() -> bytes:
        listener = listen_at(0)
        taking = asyncio.create_task(asyncio.to_thread(stall_and_take, listener))
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        async with ringmain.save(url, reconnect=True, idle_timeout=3.0) as saver:  # who takes all may be slow
            await saver.write(data)
        return await taking

    got = run(main())
    assert got
    assert data.endswith(got)


def test_a_record_that_is_too_long_to_be_kept_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_client, "MAX_RECORD", 100_000)

    async def main() -> None:
        with server_at() as listener:
            taking = asyncio.create_task(asyncio.to_thread(is_reset, listener))
            url = f"127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(errors.RecordTooLongError, match="no delimiter within 100000 bytes"):
                async with ringmain.save(url, reconnect=True, delimiter=b"\n") as saver:
                    await saver.write(b"a record\n")
                    while True:
                        await saver.write(bytes(1000))
                        await asyncio.sleep(0)
            assert await taking

    run(main())


def test_what_the_peer_of_a_unix_socket_left_unread_comes_again(run: Run, tmp_path: Path) -> None:
    records = [b"record %d\n" % number for number in range(1000)]

    def take_all(listener: socket.socket) -> bytes:
        with listener.accept()[0] as sock:
            return peers.read_all(sock)

    async def main() -> bytes:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            listener.listen()
            listener.settimeout(peers.TIMEOUT)
            async with ringmain.save(f"unix:{tmp_path}/socket", reconnect=True, delimiter=b"\n") as saver:
                with listener.accept()[0]:
                    for record in records:
                        await saver.write(record)
                    await asyncio.sleep(0)  # small writes go out at the end of a turn
                    peers.eventually(lambda: saver.counters is not None and saver.counters.bytes_out)
                taking = asyncio.create_task(asyncio.to_thread(take_all, listener))
                await saver.write(b"the last\n")
            return await taking

    assert run(main()) == b"".join([*records, b"the last\n"])
