"""The command line. What a command needs is imported when it runs: `--help` costs no more than its parser.

Exit status: 0 done, 1 something that was looked at is not well (`models`, `graph`, `batch`, `slo check`, `doctor`), 2 Headrace
could not do what was asked; then stderr has one line that says why.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from headrace import __version__
from headrace.cli.balance import balance
from headrace.cli.batch import batch as batch_commands
from headrace.cli.bench import bench
from headrace.cli.cluster import down, up
from headrace.cli.ledger import ledger as ledger_commands
from headrace.cli.slo import slo as slo_commands
from headrace.errors import HeadraceError, InvalidRepository

app = typer.Typer(
    name="headrace",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command()(balance)
app.command()(up)
app.command()(down)
app.add_typer(batch_commands, name="batch")
app.add_typer(bench, name="bench")
app.add_typer(ledger_commands, name="ledger")
app.add_typer(slo_commands, name="slo")

RepositoryOption = Annotated[Path, typer.Option("--repository", "-r", metavar="DIR", help="The folder of models.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def main() -> NoReturn:
    """Run the command line of this process."""
    try:
        # People write both: the flag alone, and Triton's `=true`, which a flag could not take.
        given = ["--allow-client-shm=true" if word == "--allow-client-shm" else word for word in sys.argv[1:]]
        status = app(given, standalone_mode=False, prog_name="headrace")
    except typer.TyperException as error:
        _fail(f"{error.format_message().rstrip('.')}; see headrace --help", error.exit_code)
    except HeadraceError as error:
        _fail(error.message, 2)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    _leave(status or 0)


def _leave(status: int) -> NoReturn:
    """End this process.

    A thread that is still in native code – the last run of a probe, a model that hangs – would be torn out of it when the
    interpreter is taken down, and the process would abort. Nothing of ours is left to do then: where there is such a thread, the
    process just ends.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _fail(message: str, status: int) -> NoReturn:
    print(f"headrace: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"headrace {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Serve ONNX models over the KServe V2 (Triton) protocol.

    \b
    Examples:
      headrace serve model.onnx
      headrace serve --repository models --model-control poll
      headrace balance --directory replicas
      headrace models --repository models
      headrace models --repository models --profile
      headrace graph --repository models embed
      headrace batch embed --repository models --input 'texts/*.parquet' --output vectors
      headrace bench load --target 127.0.0.1:8001 --model magika --concurrency 16
      headrace ledger tail -f
      headrace budget --watch
      headrace doctor
    """


@app.command()
def serve(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL.onnx", help="Serve this one file.", show_default=False)] = None,
    repository: Annotated[Path | None, typer.Option("--repository", "-r", metavar="DIR", help="The folder of models.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings as YAML; options win over it.")] = None,
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="gRPC listens here; port 0: any; or unix:PATH. [127.0.0.1:8001]")
    ] = None,
    http: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="REST listens here, or none. [127.0.0.1:8000]")] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="/metrics for Prometheus, or none. [127.0.0.1:8002]")
    ] = None,
    transport: Annotated[str | None, typer.Option(metavar="auto|native|portable", help="The way in. [auto]")] = None,
    server_name: Annotated[str | None, typer.Option(metavar="NAME", help="What clients are told. [headrace]")] = None,
    model_control: Annotated[
        str | None, typer.Option(metavar="none|poll|explicit", help="Load at the start, on changes, or when asked. [none]")
    ] = None,
    load_model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With explicit: load this at the start; repeatable, * is all.")
    ] = None,
    poll_seconds: Annotated[float | None, typer.Option(metavar="S", help="How often to look for changes. [15]")] = None,
    strict_readiness: Annotated[
        bool | None, typer.Option("--strict-readiness/--no-strict-readiness", help="Ready only when every model is. [strict]")
    ] = None,
    probe: Annotated[
        bool | None, typer.Option("--probe/--no-probe", help="When idle, measure how long each model runs. [probe]")
    ] = None,
    drain_grace: Annotated[
        float | None, typer.Option(metavar="S", help="Stopping: take new requests this long, no longer ready. [2]")
    ] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Stopping: then give accepted requests this long. [30]")
    ] = None,
    http_max_input_size: Annotated[int | None, typer.Option(metavar="BYTES", help="Limit of a REST request. [67108864]")] = None,
    allow_client_shm: Annotated[
        str | None,
        typer.Option(
            metavar="[=true|false]",
            help="Let clients on this machine register shared memory. [false]",
        ),
    ] = None,
    grpc_header_forward_pattern: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Headers of these names become parameters of their requests.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Be one of the replicas there; see headrace balance.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the records of all requests there; see headrace ledger.")
    ] = None,
    ledger_segment_bytes: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Records that make a file of it. [67108864]")
    ] = None,
    ledger_segment_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="How long records wait for their file. [60]")
    ] = None,
    ledger_keep_bytes: Annotated[
        int | None, typer.Option(metavar="BYTES", help="What its files may take; the oldest go. [4294967296]")
    ] = None,
    ledger_keep_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="How old its files may become. [no limit]")
    ] = None,
    slo: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Objectives, as OpenSLO files. [slo/ below the repository]")
    ] = None,
    spans_per_second: Annotated[
        int | None, typer.Option(metavar="N", help="Of traces, which OTEL_EXPORTER_OTLP_ENDPOINT turns on. [5000]")
    ] = None,
    log_level: Annotated[str | None, typer.Option(metavar="debug|info|warning|error", help="[info]")] = None,
    log_format: Annotated[str | None, typer.Option(metavar="auto|text|json", help="auto: text on a terminal. [auto]")] = None,
) -> None:
    """Serve models until SIGTERM or Ctrl-C.

    Prints one line on stdout when it is ready, such as `ready grpc=HOST:PORT http=HOST:PORT metrics=HOST:PORT models=2/3
    transport=portable`; logs go to stderr.
    SIGTERM drains: not ready, a grace in which requests are still taken, then no new ones, then exit 0.

    \b
    Examples:
      headrace serve model.onnx
      headrace serve --repository models --grpc 0.0.0.0:8001 --http 0.0.0.0:8000
      headrace serve --repository models --grpc 127.0.0.1:0 --http none --metrics none
      headrace serve --repository models --model-control explicit --load-model magika
      headrace serve --repository models --ledger ledger --slo slo
      headrace serve --repository models --directory replicas --grpc 127.0.0.1:0 --http none --metrics none
      OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 headrace serve --repository models
      headrace serve --config configs/server/local.yaml --repository models --grpc 127.0.0.1:0
    """
    from headrace.cli.serve import run_server
    from headrace.config import server_config

    given = {
        "repository": repository,
        "grpc": grpc,
        "http": http,
        "metrics": metrics,
        "transport": transport,
        "server_name": server_name,
        "model_control": model_control,
        "load_model": load_model or None,
        "poll_seconds": poll_seconds,
        "strict_readiness": strict_readiness,
        "probe": probe,
        "drain_grace": drain_grace,
        "drain_seconds": drain_seconds,
        "http_max_input_size": http_max_input_size,
        "allow_client_shm": allow_client_shm,
        "grpc_header_forward_pattern": grpc_header_forward_pattern,
        "directory": directory,
        "ledger": ledger,
        "ledger_segment_bytes": ledger_segment_bytes,
        "ledger_segment_seconds": ledger_segment_seconds,
        "ledger_keep_bytes": ledger_keep_bytes,
        "ledger_keep_seconds": ledger_keep_seconds,
        "slo": slo,
        "spans_per_second": spans_per_second,
        "log_level": log_level,
        "log_format": log_format,
    }
    run_server(server_config(config, given), model)


@app.command()
def models(
    repository: RepositoryOption,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="These models; all by default.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Measure how long each runs, and how it is best called.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="With --profile: measure anew what was measured before.")] = False,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="With --profile: plot rows/s; needs headrace[bench].")] = None,
    json: JsonOption = False,
) -> None:
    """List models: versions, digests, inputs, outputs, what was filled in, why one does not load.

    Loads every model just as `serve` would, and serves none. Exit status 1 when a model is broken. With --profile, each is
    measured instead, as an idle server would: batches of zeros, some seconds a model. Results are kept for the next server.

    \b
    Examples:
      headrace models --repository models --json
      headrace models --repository models --profile magika
      headrace models --repository models --profile --fresh --svg profiles.svg
    """
    if profile:
        from headrace.cli.profile import show_profiles

        raise typer.Exit(show_profiles(repository, names or (), json=json, fresh=fresh, file=svg))
    if fresh or svg is not None:
        raise InvalidRepository("--fresh and --svg have a meaning with --profile only")
    from headrace.cli.models import show_models

    raise typer.Exit(show_models(repository, names or (), json=json))


@app.command()
def graph(
    repository: RepositoryOption,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The graph; left out, they are listed.", show_default=False)
    ] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it, too.")] = None,
    json: JsonOption = False,
) -> None:
    """Show what a graph runs: nodes, the tensors between them, and the queues at which its rows wait.

    Loads it just as `serve` would, with the models it runs, and serves nothing. Exit status 1 when it is broken.

    \b
    Examples:
      headrace graph --repository models
      headrace graph --repository models embed
      headrace graph --repository models embed --svg embed.svg
    """
    from headrace.cli.graph import show_graph, show_graphs

    if name is not None:
        raise typer.Exit(show_graph(repository, name, json=json, file=svg))
    if svg is not None:
        raise InvalidRepository("--svg draws one graph: give its name")
    raise typer.Exit(show_graphs(repository, json=json))


@app.command()
def budget(
    of: Annotated[
        str | None, typer.Option(metavar="PID|DIR", help="The server, or its directory in memory; left out, the only one.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, once a second, until Ctrl-C.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="What the server decided because of them, and why.")] = False,
    json: JsonOption = False,
) -> None:
    """Show the error budgets of a running server: what is left, how fast it burns, at which stage, and for whom.

    With --explain: what the server decided because of that, one decision a line, the latest last.

    \b
    Examples:
      headrace budget
      headrace budget --watch
      headrace budget --of 4711 --json
      headrace budget --explain --watch
    """
    if explain:
        from headrace.cli.explain import explain_decisions

        explain_decisions(of, watch=watch, json=json)
        return
    from headrace.cli.budget import show_budgets

    show_budgets(of, watch=watch, json=json)


@app.command()
def observe(
    ledger: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the files go; left out, there are none.")] = None,
    of: Annotated[
        str | None, typer.Option(metavar="PID|DIR", help="The server, or its directory in memory; left out, the only one.")
    ] = None,
    segment_bytes: Annotated[int, typer.Option(metavar="BYTES", help="Records that make a file.", min=1 << 16)] = 64 << 20,
    segment_seconds: Annotated[float, typer.Option(metavar="S", help="How long they wait for it.", min=0.01)] = 60.0,
    keep_bytes: Annotated[int, typer.Option(metavar="BYTES", help="What the files may take; the oldest go.", min=1)] = 4 << 30,
    keep_seconds: Annotated[float | None, typer.Option(metavar="S", help="How old they may become.")] = None,
    spans_per_second: Annotated[int, typer.Option(metavar="N", help="Of traces, at most.", min=1)] = 5000,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option(metavar="LEVEL")] = "info",
    log_format: Annotated[Literal["auto", "text", "json"], typer.Option(metavar="auto|text|json")] = "auto",
) -> None:
    """The side process of a server: writes the records of its requests to Parquet files, and sends traces, until the server ends.

    `headrace serve --ledger DIR` starts it, and OTEL_EXPORTER_OTLP_ENDPOINT does; by hand, it follows a server that was started
    without.

    \b
    Examples:
      headrace observe --ledger ledger
      headrace observe --of 4711 --ledger ledger --keep-seconds 604800
    """
    from headrace.cli.observe import run_observer
    from headrace.server.logs import configure_logs

    configure_logs(log_level, log_format)
    run_observer(
        of,
        ledger,
        segment_bytes=segment_bytes,
        segment_seconds=segment_seconds,
        keep_bytes=keep_bytes,
        keep_seconds=keep_seconds,
        spans_per_second=spans_per_second,
    )


@app.command()
def doctor(json: JsonOption = False) -> None:
    """Say what this machine can do, and what is missing.

    Exit status 1 when something that serving needs is missing.

    \b
    Example:
      headrace doctor
    """
    from headrace.cli.doctor import show_findings

    raise typer.Exit(show_findings(json=json))
