"""`python -m demo`: serve two graphs, ask them about this repository's own files and sentences, and check the answers.

Exit status 0: the answers are those of ONNX Runtime alone. 1: they are not, or the server failed. On a terminal the server
stays up until Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from demo import embed, filetype
from demo.repository import ROOT
from demo.server import Server, ServerFailed

REPOSITORY = ROOT / "build/demo/repository"


def main() -> int:
    """Run the demo; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Serve graphs of real models and check their answers.")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, metavar="DIR", help="default: build/demo/repository")
    repository: Path = parser.parse_args().repository
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the server is stopped too
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)

    for graph in (filetype, embed):
        graph.build_repository(repository)
    server = Server(repository, ROOT / "build/demo/server.log")
    try:
        with server:
            right = [graph.run(console, server.grpc) for graph in (filetype, embed)]
            if not all(right):
                told = f"what is in {repository} is not what this clone and the packages have; remove it and run again"
                console.print(escape(told), soft_wrap=True)
            elif sys.stdout.isatty() and sys.stdin.isatty():
                return stay(console, server)
        console.print(f"server stopped, exit status 0; its log: {server.log}")
    except ServerFailed as error:
        console.print(f"[red]{escape(str(error))}[/red]; its log, {server.log}:", soft_wrap=True)
        print(server.log.read_text(), file=sys.stderr)
        return 1
    return 0 if all(right) else 1


def stay(console: Console, server: Server) -> int:
    """Keep serving until Ctrl-C, or until the server ends by itself, which is a failure."""
    try:
        # Whoever started us may have let us ignore it; the line below promises it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.print(f"\nserving: [bold]{server.addresses}[/bold]   log {server.log}   Ctrl-C stops", soft_wrap=True)
        server.wait()
    except KeyboardInterrupt:
        console.print("stopping")
        return 0
    raise ServerFailed("the server went away")


if __name__ == "__main__":
    sys.exit(main())
