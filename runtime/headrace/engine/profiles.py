"""Profiles on disk, and what follows from them. A cache: whatever is wrong with it costs a measurement, and nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from headrace.backends.installed import gpu_models, onnxruntime_builds
from headrace.engine.profile import FORMAT, Calls, Profile
from headrace.errors import HeadraceError
from headrace.files import replace_file
from headrace.machine import cpu_model, usable_cpus
from headrace.models.files import ModelFiles
from headrace.models.pbtxt import parse
from headrace.protocol.headrace_pb2 import ModelConfig, ModelInstanceGroup

log = logging.getLogger(__name__)

MOST_PROFILES = 200
WORTH = 1.1
"""How many times the rows per second parallel calls must do to be preferred: each of them takes longer."""


class Profiles:
    """The profiles in a directory.

    Args:
        directory: where; the cache of this user by default.
        fresh: know nothing of before, so that everything is measured anew.
    """

    def __init__(self, directory: Path | None = None, *, fresh: bool = False) -> None:
        self._directory = directory or _cache_directory()
        self._fresh = fresh

    def get(self, key: str) -> Profile | None:
        """The profile that was kept under `key`, if it is there and can be read."""
        if self._directory is None or self._fresh:
            return None
        file = self._directory / f"{key}.json"
        try:
            profile = Profile.parse(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("the profile in %s cannot be used, and is measured anew: %s", file, error)
            return None
        with suppress(OSError):
            os.utime(file)  # the oldest go, and this one is in use
        return profile

    def put(self, key: str, profile: Profile) -> None:
        """Keep a profile under `key`, if the disk lets us."""
        if self._directory is None:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            replace_file(self._directory / f"{key}.json", json.dumps(profile.record(), indent=1).encode())
            self._forget_the_oldest(self._directory)
        except OSError as error:
            log.warning("a profile cannot be kept in %s, and will be measured again: %s", self._directory, error)

    def _forget_the_oldest(self, directory: Path) -> None:
        ages: list[tuple[int, Path]] = []
        for file in directory.iterdir():
            with suppress(OSError):  # another server tidies up, too
                ages.append((file.stat().st_mtime_ns, file))
        for _, file in sorted(ages)[:-MOST_PROFILES]:
            file.unlink(missing_ok=True)

    def advice(self, files: ModelFiles, digest: str) -> Calls | None:
        """What a version was found to do more with, where its configuration leaves the number of instances open.

        None: nothing was measured, or one call at a time is as good.
        """
        if not _is_open(files):
            return None
        profile = self.get(key_of(files.config, digest))
        calls = profile.calls if profile is not None else None
        return calls if calls is not None and calls.count == usable_cpus() and calls.gain >= WORTH else None


def key_of(config: ModelConfig, digest: str) -> str:
    """What a profile is kept under: all that execution times depend on. `config` is filled, but not completed from the file."""
    plain = ModelConfig()
    plain.CopyFrom(config)
    plain.name = ""
    plain.ClearField("version_policy")
    for group in plain.instance_group:
        group.name = ""
    on_gpu = any(group.kind == ModelInstanceGroup.KIND_GPU for group in plain.instance_group)
    runtime = sorted(onnxruntime_builds().items()) if plain.backend == "onnxruntime" else plain.backend
    parts = [FORMAT, digest, cpu_model(), usable_cpus(), gpu_models() if on_gpu else [], runtime]
    return hashlib.sha256(repr(parts).encode() + plain.SerializeToString(deterministic=True)).hexdigest()


def _cache_directory() -> Path | None:
    """None where there is no such place."""
    own, users = os.environ.get("HEADRACE_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own) / "profiles"
    try:
        # A relative one is to be ignored, says the XDG specification.
        caches = Path(users) if users.startswith("/") else Path.home() / ".cache"
    except RuntimeError:
        return None
    return caches / "headrace" / "profiles"


def _is_open(files: ModelFiles) -> bool:
    """Whether the configuration leaves it to us how many instances run, and on the CPU they do."""
    groups = files.config.instance_group
    if len(groups) != 1 or groups[0].kind != ModelInstanceGroup.KIND_CPU:
        return False
    try:
        written = parse(files.config_text, str(files.path))
    except HeadraceError:
        return False
    return not any(group.count for group in written.instance_group)
