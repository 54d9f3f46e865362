"""A program that scripts start in place of `python`: what it runs is forked from the fork server, without an import."""

import ast
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

from fork_server import FORK, as_python

CLIENT = """#!{python} -IS
import os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = repr((sys.argv[1:], os.getcwd(), dict(os.environ)))
    socket.send_fds(server, [f"{{asked}}\\n".encode()], [0, 1, 2])
    sys.exit(int(server.recv(16) or 1))
"""


@contextmanager
def forked_python(folder: Path) -> Iterator[Path]:
    """Write the program `python` into a folder; it works within the block."""
    program, address = folder / "python", str(folder / "socket")
    program.write_text(CLIENT.format(python=sys.executable, address=address))
    program.chmod(0o755)
    with socket.create_server(address, family=socket.AF_UNIX) as listener:
        server = FORK.Process(target=_serve, args=(listener,))
        server.start()
    yield program
    server.kill()
    server.join()


def _serve(listener: socket.socket) -> None:
    """Fork a process for every call that comes, until the test process ends."""
    tests = parent_process()
    while tests.sentinel not in wait([listener, tests.sentinel]):
        connection, _ = listener.accept()
        if os.fork() == 0:
            if os.fork() == 0:  # the first child ends at once, so that nobody has to wait for the second
                _answer(connection)
            os._exit(0)
        connection.close()
        os.wait()


def _answer(connection: socket.socket) -> None:
    """Run what a client asks for, and send it the exit code. If the client is killed, so is what it asked for."""
    asked, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not asked.endswith(b"\n"):
        asked += connection.recv(1 << 20)
    call, folder, env = ast.literal_eval(asked.decode())
    os.environ.clear()
    process = get_context("fork").Process(target=as_python, args=(call, folder, env, dict(enumerate(files))))
    process.start()
    if process.sentinel not in wait([process.sentinel, connection]):
        process.kill()
    process.join()
    code = process.exitcode
    connection.sendall(str(code if code >= 0 else 128 - code).encode())
