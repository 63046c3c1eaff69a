"""Model repositories: Triton's layout `<root>/<model>/config.pbtxt` and `<root>/<model>/<version>/`, or a single file.

A repository keeps nothing between calls; it reads the disk each time, from any thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from google.protobuf import text_format

from headrace.errors import InvalidRepository, NotInRepository
from headrace.models.check import check_config
from headrace.models.files import (
    ModelFiles,
    VersionFiles,
    belongs_to,
    fingerprint,
    fingerprint_of,
    version_directories,
    walk,
)
from headrace.models.fill import ONNX, fill
from headrace.models.pbtxt import parse
from headrace.protocol.headrace_pb2 import ModelConfig

if TYPE_CHECKING:
    from headrace.models.graphs import Graph

CONFIG = "config.pbtxt"
GRAPH_FILE = "graph.yaml"
OBJECTIVES = "slo"


class Repository:
    """The models below one or several directories."""

    def __init__(self, *roots: Path) -> None:
        self.roots = tuple(map(Path, roots))

    def __repr__(self) -> str:
        return f"<Repository {', '.join(map(str, self.roots))}>"

    @property
    def objectives(self) -> Path | None:
        """The directory of objectives, `slo/` with files that end in `.yaml`, if there is one."""
        return next((root / OBJECTIVES for root in self.roots if _holds_objectives(root / OBJECTIVES)), None)

    @staticmethod
    def of_file(path: Path) -> ModelFile:
        """A repository of the one model in a file."""
        return ModelFile(path)

    def names(self) -> list[str]:
        """The names of all models, sorted. One that is broken, or in two directories, is among them: `read` says why.

        Raises:
            InvalidRepository: a repository directory cannot be read.
        """
        names: set[str] = set()
        for root in self.roots:
            try:
                # Hidden directories are not models: volumes mounted from Kubernetes keep their own there.
                names.update(name for name in os.listdir(root) if _can_be_asked_for(name) and _is_model(root / name))
            except OSError as error:
                raise InvalidRepository(
                    f"cannot read model repository {root}: {error.strerror}; give a directory that holds one directory per model"
                ) from error
        return sorted(names)

    def read(self, name: str, override: ModelConfig | None = None, gpus: int = 0) -> ModelFiles:
        """Read one model; `override` takes the place of its `config.pbtxt`, `gpus` is how many GPUs can be used.

        Raises:
            NotInRepository: there is no such model.
            InvalidRepository: the name, the configuration or the layout on disk is at fault.
        """
        check_name(name)
        places = self._places(name)
        if not places:
            raise NotInRepository(name)
        if len(places) > 1:
            raise InvalidRepository(
                f"model '{name}' appears in two or more repositories: {', '.join(map(str, places))}; keep it in one of them"
            )
        return _read_directory(places[0], name, override, gpus)

    def fingerprint(self, name: str) -> Hashable | None:
        """What changes whenever the model does, without reading files: to be compared between polls.

        Whoever is copying or swapping files meanwhile makes it differ, never fail. None when there is no such model.
        """
        places = [fingerprint(place) for place in self._places(name)]
        return tuple(places) if places and None not in places else None

    def _places(self, name: str) -> list[Path]:
        return [root / name for root in self.roots if _is_name(name) and os.path.isdir(root / name)]


class ModelFile:
    """A repository of one ONNX file: a model named after it, version 1."""

    def __init__(self, path: Path) -> None:
        """Take the file at `path`.

        Raises:
            InvalidRepository: it is no ONNX file.
        """
        self.path = Path(path)
        self.name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.path.stem).lstrip(".") or "model"
        if not self.path.is_file():
            raise InvalidRepository(f"no model file {path}; give an existing .onnx file, or a directory of models as repository")
        if self.path.suffix != ONNX.suffix:
            raise InvalidRepository(f"{path} is no .onnx file; other kinds of models are served from a repository")

    def __repr__(self) -> str:
        return f"<ModelFile {self.path} as '{self.name}'>"

    @property
    def objectives(self) -> None:
        """There is no place for objectives beside a file."""

    def names(self) -> list[str]:
        """The one name."""
        return [self.name]

    def read(self, name: str, override: ModelConfig | None = None, gpus: int = 0) -> ModelFiles:
        """Read the model, as `Repository.read` does.

        Raises:
            NotInRepository: it has another name, or the file has gone.
            InvalidRepository: the name or the override is at fault.
        """
        check_name(name)
        if name != self.name or not self.path.is_file():
            raise NotInRepository(name)
        directory, filename = self.path.parent.resolve(), self.path.name
        config = ModelConfig()
        if override is not None:
            config.CopyFrom(override)
        config.default_model_filename = filename
        config = _filled(config, name, {1: directory}, gpus)
        return ModelFiles(name, directory, config, _text(override), (VersionFiles(1, directory, only=filename),))

    def fingerprint(self, name: str) -> Hashable | None:
        """What changes whenever the file, or external data beside it, does; None when it has gone."""
        if name != self.name or not self.path.is_file():
            return None
        directory = self.path.parent.resolve()
        found = [fingerprint_of(found) for found in walk(directory, deep=False) if belongs_to(found.path, self.path.name)]
        return (directory, tuple(sorted(found)))


class ModelSource(Protocol):
    """Where models come from: a repository, or a single file."""

    def names(self) -> list[str]:
        """All names."""
        ...

    def read(self, name: str, override: ModelConfig | None = None, gpus: int = 0) -> ModelFiles:
        """One model."""
        ...

    def fingerprint(self, name: str) -> object:
        """What changes whenever the model does; None when it is gone."""
        ...


class WithGraphs:
    """A repository, and graphs that are written in Python: each is a model of one version, which never changes."""

    def __init__(self, models: ModelSource, graphs: Sequence[Graph]) -> None:
        """Take the graphs in.

        Raises:
            InvalidRepository: there is a model of that name.
        """
        self._models, self._graphs = models, {graph.name: graph for graph in graphs}
        known = models.names()
        for number, graph in enumerate(graphs):
            check_name(graph.name)
            if graph.name in known or graph in graphs[:number]:
                raise InvalidRepository(f"there are two models '{graph.name}': give the graph another name")

    def __repr__(self) -> str:
        return f"<{self._models!r} and {', '.join(self._graphs)}>"

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._models.names(), *self._graphs})

    def read(self, name: str, override: ModelConfig | None = None, gpus: int = 0) -> ModelFiles:
        """Read one model. See `Repository.read`."""
        graph = self._graphs.get(name)
        if graph is None:
            return self._models.read(name, override, gpus)
        if override is not None:
            raise InvalidRepository(f"graph '{name}' is written in Python, and takes no configuration")
        from headrace.models.graphs import config_of

        path = graph.directory.resolve()
        config = _filled(config_of(graph), name, {1: path}, gpus)
        # The files of its nodes are its own only where it says where they are.
        only = None if graph.directory != Path() else ""
        return ModelFiles(name, path, config, graph.model_dump_json(), (VersionFiles(1, path, only),), graph=graph)

    def fingerprint(self, name: str) -> object:
        """See `Repository.fingerprint`."""
        return name if name in self._graphs else self._models.fingerprint(name)


def _can_be_asked_for(name: str) -> bool:
    """Not hidden, and text: a file name need not be, a name in a request must."""
    return not name.startswith(".") and name.isprintable()


def _is_model(path: Path) -> bool:
    return os.path.isdir(path) and not _holds_objectives(path)


def _holds_objectives(path: Path) -> bool:
    """Whether this is `slo/`, with files in it, and not a model of that name."""
    if path.name != OBJECTIVES or not os.path.isdir(path):
        return False
    names = os.listdir(path)
    return any(name.endswith(".yaml") for name in names) and not any(n in (CONFIG, GRAPH_FILE) or n.isdecimal() for n in names)


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(bad in name for bad in "/\\\0")


def check_name(name: str) -> None:
    """Whether a model may be called so.

    Raises:
        InvalidRepository: it may not.
    """
    if not name:
        raise InvalidRepository("Model name cannot be empty. Please enter a valid name to deploy.")
    if not _is_name(name):
        raise InvalidRepository(f"invalid model name '{name}', model name must not contain path traversal characters")


def _read_directory(place: Path, name: str, override: ModelConfig | None, gpus: int) -> ModelFiles:
    # Resolved once, so that swapping a link meanwhile cannot mix an old configuration with a new version.
    path = place.resolve()
    if (path / GRAPH_FILE).exists():
        return _read_graph(place, path, name, override, gpus)
    text = _text(override) if override is not None else _read_config(path / CONFIG)
    config = parse(text, str(place / CONFIG)) if override is None else override
    directories, odd = version_directories(path)
    if not directories:
        raise InvalidRepository(
            f"model '{name}' has no version directory in {place}: put the model file into one, such as "
            f"{place / '1' / (config.default_model_filename or 'model.onnx')}"
        )
    config = _filled(config, name, directories, gpus)
    chosen = _choose(config, directories)
    missing = {
        number: f"version {number} is specified for model '{name}', but the version directory is not present"
        for number in chosen
        if number not in directories
    }
    versions = tuple(VersionFiles(number, directories[number].resolve()) for number in chosen if number not in missing)
    if not versions:
        raise InvalidRepository(
            f"at least one version must be available under the version policy of model '{name}'; "
            f"the versions in {place} are {', '.join(map(str, directories))}"
        )
    return ModelFiles(name, path, config, text, versions, missing, (*odd, *missing.values()))


def _read_graph(place: Path, path: Path, name: str, override: ModelConfig | None, gpus: int) -> ModelFiles:
    """A graph is one version, 1, and its files are those beside its `graph.yaml`."""
    if override is not None or (path / CONFIG).exists():
        raise InvalidRepository(f"{place} holds a graph: what it is stands in {GRAPH_FILE}, and it takes no {CONFIG}")
    # Imported for whoever has graphs: it brings pydantic and a parser of YAML.
    from headrace.models.graphs import config_of, parse_graph

    text = _read_config(path / GRAPH_FILE)
    graph = parse_graph(text, name, path, str(place / GRAPH_FILE))
    config = _filled(config_of(graph), name, {1: path}, gpus)
    return ModelFiles(name, path, config, text, (VersionFiles(1, path),), graph=graph)


def _filled(source: ModelConfig, name: str, directories: dict[int, Path], gpus: int) -> ModelConfig:
    config = ModelConfig()
    config.CopyFrom(source)
    fill(config, name, list(directories.values()), gpus)
    if config.name != name:
        raise InvalidRepository(
            f"unexpected directory name '{name}' for model '{config.name}', directory name must equal model name"
        )
    check_config(config, gpus)
    return config


def _choose(config: ModelConfig, directories: dict[int, Path]) -> list[int]:
    """The versions that the policy asks for, whether they are there or not."""
    policy = config.version_policy
    if policy.HasField("specific"):
        return sorted(set(policy.specific.versions))
    if policy.HasField("latest"):
        return sorted(directories, reverse=True)[: policy.latest.num_versions][::-1]
    return list(directories)


def _read_config(path: Path) -> str:
    """The text of a configuration; empty when there is none, for then everything is filled in."""
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InvalidRepository(f"{path}: cannot be read: {error.strerror}; make it a readable text file") from error
    except UnicodeDecodeError as error:
        raise InvalidRepository(f"{path}: is no UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from error


def _text(config: ModelConfig | None) -> str:
    return "" if config is None else text_format.MessageToString(config)
