"""`headrace slo`: objectives as files, before a server goes by them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.errors import InvalidObjective, InvalidRepository

if TYPE_CHECKING:
    from headrace.budgets.slo import Objective
    from headrace.models.repository import Repository

slo = typer.Typer(
    rich_markup_mode=None, help="Check objectives, and make Prometheus rules and a dashboard of them.", no_args_is_help=True
)

_RepositoryOption = Annotated[
    Path | None, typer.Option("--repository", "-r", metavar="DIR", help="The folder of models; objectives are in its slo/.")
]
_SloOption = Annotated[Path | None, typer.Option("--slo", metavar="DIR", help="The objectives, as OpenSLO files.")]


@slo.command()
def check(repository: _RepositoryOption = None, directory: _SloOption = None) -> None:
    """List the objectives, or what is wrong with them, line by line. With a repository, also whether their models are there.

    Exit status 1 when something is wrong.

    \b
    Examples:
      headrace slo check --repository models
      headrace slo check --slo slo
      headrace slo check --repository models --slo slo
    """
    from headrace.budgets.burn import duration_text
    from headrace.budgets.reading import read_objectives
    from headrace.budgets.slo import unserved

    models = _repository(repository)
    try:
        objectives = read_objectives(_directory(models, directory))
        problems = [] if models is None else unserved(objectives, _known(models, objectives))
    except InvalidObjective as error:
        objectives, problems = [], error.problems
    for each in objectives:
        print(f"{each.where}: {each.name}: {each.sentence}, over {duration_text(each.window_ns)}")
    for problem in problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(1 if problems else 0)


@slo.command()
def render(
    repository: _RepositoryOption = None,
    directory: _SloOption = None,
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="Write recording and alerting rules there. [stdout]")] = None,
    dashboard: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Grafana dashboard there.")] = None,
) -> None:
    """Make Prometheus rules, and a Grafana dashboard that goes with them, of the objectives.

    \b
    Examples:
      headrace slo render --slo slo > rules.yml
      headrace slo render --repository models --rules rules.yml --dashboard budgets.json
    """
    from headrace.budgets.dashboard import dashboard_text
    from headrace.budgets.reading import read_objectives
    from headrace.budgets.rules import rules_text
    from headrace.files import replace_file

    objectives = read_objectives(_directory(_repository(repository), directory))
    if rules is None and dashboard is None:
        print(rules_text(objectives), end="")
    for path, make in ((rules, rules_text), (dashboard, dashboard_text)):
        if path is not None:
            try:
                replace_file(path, make(objectives).encode())
            except OSError as error:
                raise InvalidObjective([f"cannot write {path}: {error.strerror}"]) from None


def _repository(path: Path | None) -> Repository | None:
    from headrace.models.repository import Repository

    return None if path is None else Repository(path)


def _directory(repository: Repository | None, directory: Path | None) -> Path:
    if directory is not None:
        return directory
    if repository is None:
        raise InvalidObjective(["give --slo DIR, or --repository DIR with objectives in its slo/"])
    repository.names()  # raises where there is none
    if repository.objectives is None:
        raise InvalidObjective([f"there are no objectives in {repository.roots[0] / 'slo'}: give --slo DIR"])
    return repository.objectives


def _known(repository: Repository, objectives: list[Objective]) -> dict[str, dict[int, int]]:
    """The versions of every model, and their priority levels, where it is asked for and can be read."""
    known: dict[str, dict[int, int]] = {name: {} for name in repository.names()}
    for name in {each.model for each in objectives} & known.keys():
        try:
            files = repository.read(name)
        except InvalidRepository:
            continue  # why is said by `headrace models`
        levels = files.config.dynamic_batching.priority_levels
        known[name] = {version.number: levels for version in files.versions}
    return known
