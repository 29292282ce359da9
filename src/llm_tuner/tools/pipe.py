"""A stdio server's process as a transport of the MCP SDK: its three pipes, and its end.

Not a protocol: it moves lines and counts bytes. It stands in for the SDK's own stdio transport, which lets a line grow
without limit, writes the server's stderr to our terminal and does not know a process that left the group. The rule it
protects: whatever the process does, memory is bounded and nothing of it survives the exit.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import PIPE

import anyio
import psutil
from anyio.abc import ByteReceiveStream, Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

from llm_tuner.tools.servers import ServerConfig

MAX_LINE_BYTES = 8 * 1024 * 1024
KEPT_STDERR_BYTES = 8 * 1024
GRACE_SECONDS = 1.0
"""How long each step of stopping waits: after stdin is closed, after SIGTERM, after SIGKILL."""

_POLL_SECONDS = 0.02

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


class Pipe:
    """One run of one stdio server. `ended` is set when it can no longer answer; `end` then says why."""

    def __init__(self, config: ServerConfig, cwd: Path | None, ended: anyio.Event) -> None:
        self.config, self.cwd, self.ended = config, cwd, ended
        self.end = ""
        self.noise = 0
        self.last_noise = ""
        self._stderr = b""
        self._stopping = False

    @property
    def stderr(self) -> str:
        """The last lines that the server wrote to stderr, at most 8 KiB."""
        return self._stderr.decode(errors="replace")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Streams]:
        """Starts the process and yields the streams of an MCP session; on exit the whole process tree is gone.

        Raises SetupError or OSError where the process cannot be started.
        """
        # Whoever runs out of time in the middle of a start would leave a process that nobody knows.
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                self.config.argv(),
                env=get_default_environment() | self.config.env,
                cwd=self.config.cwd or self.cwd,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=sys.platform != "win32",
            )
        incoming, to_session = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, from_session = anyio.create_memory_object_stream[SessionMessage](0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read, process, incoming)
            tasks.start_soon(self._write, process, from_session)
            tasks.start_soon(self._listen, process)
            try:
                yield to_session, outgoing
            finally:
                self._stopping = True  # an end from here on is our doing, not a reason
                # A cancelled caller must not leak a live process; every wait inside is bounded.
                with anyio.CancelScope(shield=True):
                    await _stop(process)
                    tasks.cancel_scope.cancel()
                for stream in (incoming, to_session, from_session, outgoing):
                    stream.close()

    async def _read(self, process: Process, incoming: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        assert process.stdout is not None
        try:
            async for line in self._lines(process.stdout):
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    self._note_noise(line)
                    continue
                await incoming.send(SessionMessage(message))
            if not self._stopping:
                self.end = self.end or await _exit_words(process)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            if not self._stopping:
                self.end = self.end or "the connection broke"
        finally:
            self.ended.set()
            incoming.close()

    async def _lines(self, stdout: ByteReceiveStream) -> AsyncIterator[bytes]:
        buffer = bytearray()
        async for chunk in stdout:
            start = len(buffer)
            buffer += chunk
            if buffer.find(b"\n", start) >= 0:
                *lines, rest = bytes(buffer).split(b"\n")
                buffer = bytearray(rest)
                for line in lines:
                    yield line
            if len(buffer) > MAX_LINE_BYTES:
                self.end = f"it sent a line of more than {MAX_LINE_BYTES // 1024**2} MiB and was stopped"
                return

    def _note_noise(self, line: bytes) -> None:
        if line.strip():
            self.noise += 1
            self.last_noise = line[:200].decode(errors="replace")

    async def _write(self, process: Process, from_session: MemoryObjectReceiveStream[SessionMessage]) -> None:
        assert process.stdin is not None
        async for item in from_session:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            try:
                await process.stdin.send(text.encode() + b"\n")
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                return  # the reader sees the end and says why

    async def _listen(self, process: Process) -> None:
        assert process.stderr is not None
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            async for chunk in process.stderr:
                self._stderr = (self._stderr + chunk)[-KEPT_STDERR_BYTES:]


async def _exit_words(process: Process) -> str:
    if await _gone(process, (), GRACE_SECONDS):
        return f"it exited with code {process.returncode}"
    return "it closed its output"


# ----------------------------------------------------------------------------------------------------------- stopping


async def _stop(process: Process) -> None:
    """Closes stdin, waits, SIGTERM, waits, SIGKILL: to the process, its group and all its descendants."""
    family = _family(process.pid)  # before the parent dies: afterwards nobody knows whose children they were
    if process.stdin is not None:
        with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await process.stdin.aclose()
    await _gone(process, (), GRACE_SECONDS)
    family |= _family(process.pid)
    for kill in (False, True):
        _signal(process, family, kill)
        if await _gone(process, family, GRACE_SECONDS):
            break
    _close_pipes(process)


def _family(pid: int) -> set[psutil.Process]:
    """Descendants of the process and members of its group: a child can leave either, few leave both."""
    family: set[psutil.Process] = set()
    with suppress(psutil.Error):
        family.update(psutil.Process(pid).children(recursive=True))
    if sys.platform != "win32":
        family.update(member for member in psutil.process_iter() if member.pid != pid and _group(member.pid) == pid)
    return family


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _signal(process: Process, family: Iterable[psutil.Process], kill: bool) -> None:
    if sys.platform != "win32":
        # The group outlives its leader: this reaches children whose parent is already gone. And not the leader through
        # its Process: that would look for its exit first and take the exit code from the event loop.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
    elif process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    for member in family:
        with suppress(psutil.Error):
            member.kill() if kill else member.terminate()


async def _gone(process: Process, family: Iterable[psutil.Process], timeout: float) -> bool:
    # Not process.wait(): it also waits for the pipes to end, which a surviving child can hold open.
    deadline = anyio.current_time() + timeout
    while process.returncode is None or any(map(_alive, family)):
        if anyio.current_time() >= deadline:
            return False
        await anyio.sleep(_POLL_SECONDS)
    return True


def _alive(member: psutil.Process) -> bool:
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _close_pipes(process: Process) -> None:
    # anyio shows no way to close the pipes of a process while a stranger holds their other end; the SDK does the same.
    transport = getattr(getattr(process, "_process", None), "_transport", None)
    if transport is not None:
        with suppress(PermissionError):
            transport.close()
