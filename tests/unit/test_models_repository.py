"""Repositories on disk, also while somebody writes to them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from headrace.errors import Code, InvalidRepository, NotInRepository
from headrace.models import files
from headrace.models.pbtxt import parse_json
from headrace.models.repository import ModelFile, Repository

DIGEST = "find -L . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum"


def write(path: Path, text: str = "model") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "repository/m/1/model.onnx", "one")
    return tmp_path / "repository"


def refused(repository: Repository | ModelFile, name: str = "m") -> str:
    with pytest.raises(InvalidRepository) as caught:
        repository.read(name)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return str(caught.value)


def test_a_model_without_configuration(root: Path) -> None:
    found = Repository(root).read("m")
    assert found.config.backend == "onnxruntime"
    assert found.config_text == ""
    assert [version.number for version in found.versions] == [1]
    assert found.versions[0].path == root / "m/1"
    assert repr(found) == f"<ModelFiles m [1] in {root / 'm'}>"


def test_names_are_directories_of_all_roots_but_hidden_ones(root: Path, tmp_path: Path) -> None:
    write(root / "README.md")
    write(root / "..data/m/1/model.onnx")
    write(tmp_path / "other/a/1/model.onnx")
    assert Repository(root, tmp_path / "other").names() == ["a", "m"]


def test_a_missing_repository_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidRepository) as caught:
        Repository(tmp_path / "none").names()
    assert str(caught.value) == (
        f"cannot read model repository {tmp_path / 'none'}: No such file or directory; "
        "give a directory that holds one directory per model"
    )


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../m", "/etc", "a\\b", "m\0"])
def test_a_name_cannot_lead_elsewhere(root: Path, name: str) -> None:
    message = f"invalid model name '{name}', model name must not contain path traversal characters"
    assert refused(Repository(root / "m"), name) == message
    assert Repository(root).fingerprint(name) is None


def test_no_name_and_an_unknown_name(root: Path) -> None:
    assert refused(Repository(root), "") == "Model name cannot be empty. Please enter a valid name to deploy."
    for name in ("other", "x" * 5000):
        with pytest.raises(NotInRepository):
            Repository(root).read(name)
        assert Repository(root).fingerprint(name) is None


def test_a_name_in_two_repositories(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "other/m/1/model.onnx")
    repository = Repository(root, tmp_path / "other")
    assert repository.names() == ["m"]
    assert refused(repository) == (
        f"model 'm' appears in two or more repositories: {root / 'm'}, {tmp_path / 'other/m'}; keep it in one of them"
    )


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("", [10]),
        ("latest { num_versions: 2 }", [3, 10]),
        ("latest { num_versions: 9 }", [2, 3, 10]),
        ("all {}", [2, 3, 10]),
        ("specific { versions: [ 3, 2 ] }", [2, 3]),
    ],
)
def test_version_policies(tmp_path: Path, policy: str, chosen: list[int]) -> None:
    for version in ("2", "10", "3", "03", "0", "-1", "x", "9999999999999999999"):
        write(tmp_path / f"m/{version}/model.onnx")
    write(tmp_path / "m/4", "a file is no version")
    write(tmp_path / "m/config.pbtxt", f"version_policy {{ {policy} }}")
    found = Repository(tmp_path).read("m")
    assert [version.number for version in found.versions] == chosen
    ignored = "is ignored: a version directory is a positive integer without leading zeros"
    assert found.warnings == tuple(f"{tmp_path}/m/{odd} {ignored}" for odd in ("-1", "0", "03", "9999999999999999999"))
    assert found.missing == {}


def test_a_specific_version_that_is_missing_breaks_that_version_only(root: Path) -> None:
    config = write(root / "m/config.pbtxt", "version_policy { specific { versions: [ 7, 1 ] } }")
    found = Repository(root).read("m")
    assert [version.number for version in found.versions] == [1]
    told = "version 7 is specified for model 'm', but the version directory is not present"
    assert found.missing == {7: told}
    assert found.warnings == (told,)
    config.write_text("version_policy { specific { versions: 7 } }")
    assert refused(Repository(root)) == (
        f"at least one version must be available under the version policy of model 'm'; the versions in {root / 'm'} are 1"
    )


def test_no_version_directory(tmp_path: Path) -> None:
    write(tmp_path / "m/model.onnx")
    assert refused(Repository(tmp_path)) == (
        f"model 'm' has no version directory in {tmp_path}/m: put the model file into one, such as {tmp_path}/m/1/model.onnx"
    )


def test_the_directory_must_have_the_model_s_name(root: Path) -> None:
    write(root / "m/config.pbtxt", 'name: "other"')
    assert refused(Repository(root)) == ("unexpected directory name 'm' for model 'other', directory name must equal model name")


def test_a_template_and_what_is_no_text(root: Path) -> None:
    config = write(root / "m/config.pbtxt", 'name: "m"\nmax_batch_size: ${rows}\n')
    assert refused(Repository(root)) == (
        f"{config}:2:17: the file is a template that has not been filled: give '${{rows}}' a value"
    )
    config.write_bytes(b"name: \xff")
    assert refused(Repository(root)) == f"{config}: is no UTF-8 text: invalid start byte at byte 6; save it as UTF-8"
    config.unlink()
    config.mkdir()
    assert refused(Repository(root)) == f"{config}: cannot be read: Is a directory; make it a readable text file"


def test_an_override_takes_the_place_of_the_file_and_is_not_changed(root: Path) -> None:
    write(root / "m/config.pbtxt", "max_batch_size: ${rows}")
    override = parse_json('{"max_batch_size": 3}')
    found = Repository(root).read("m", override)
    assert found.config.max_batch_size == 3
    assert found.config_text == "max_batch_size: 3\n"
    assert override == parse_json('{"max_batch_size": 3}')


def test_the_whole_configuration_is_checked_before_a_backend_sees_it(root: Path) -> None:
    write(root / "m/config.pbtxt", "instance_group { kind: KIND_GPU }")
    assert refused(Repository(root)) == "instance group m_0 of model m has kind KIND_GPU but server does not support GPUs"
    assert list(Repository(root).read("m", gpus=2).config.instance_group[0].gpus) == [0, 1]


def test_the_digest_is_what_the_documented_command_prints(root: Path, tmp_path: Path) -> None:
    version = root / "m/1"
    write(version / "a b/weights.bin", "w" * 100_000)
    write(version / "a-b", "sorts between")
    write(version / "back\\slash", "escaped")
    write(version / "line\nbreak", "escaped")
    write(tmp_path / "blob", "linked")
    (version / "linked.onnx").symlink_to(tmp_path / "blob")
    (version / "loop").symlink_to(version)
    (version / "nowhere").symlink_to(tmp_path / "none")
    printed = subprocess.run(["bash", "-c", DIGEST], cwd=version, capture_output=True, text=True, check=True).stdout
    found = Repository(root).read("m").versions[0]
    assert found.digest() == printed.split()[0]
    assert DIGEST in (files.VersionFiles.digest.__doc__ or "")
    write(tmp_path / "blob", "tampered")
    assert Repository(root).read("m").versions[0].digest() != printed.split()[0]


def test_a_link_to_a_directory_above_ends(root: Path) -> None:
    (root / "m/1/loop").symlink_to(root / "m/1")
    assert sorted(found.path for found in files.walk(root / "m/1")) == ["model.onnx"]
    assert Repository(root).read("m").versions[0].is_unchanged()


def touched(path: Path) -> None:
    """A later time of change, whatever the clock of the file system."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: write(m / "config.pbtxt", "max_batch_size: 1"),
        lambda m: write(m / "labels.txt"),
        lambda m: write(m / "1/model.onnx", "longer than before"),
        lambda m: touched(m / "1/model.onnx"),
        lambda m: write(m / "1/deep/er/weights"),
        lambda m: write(m / "2/model.onnx"),
        lambda m: (m / "2").mkdir(),
        lambda m: (m / "1/model.onnx").unlink(),
        lambda m: (m / "1").rename(m / "2"),
        lambda m: (write(m / "1/new", "one"), os.replace(m / "1/new", m / "1/model.onnx")),
    ],
)
def test_the_fingerprint_changes_with_every_file(root: Path, change: object) -> None:
    repository = Repository(root)
    before = repository.fingerprint("m")
    assert before == repository.fingerprint("m")
    assert hash(before) == hash(repository.fingerprint("m"))
    assert callable(change)
    change(root / "m")
    assert repository.fingerprint("m") not in (before, None)


def test_a_model_that_is_gone_has_no_fingerprint(root: Path) -> None:
    (root / "m").rename(root / "n")
    assert Repository(root).fingerprint("m") is None
    (root / "m").symlink_to(root / "nowhere")
    assert Repository(root).fingerprint("m") is None


def test_files_that_vanish_in_the_middle_of_a_walk_are_a_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(root)
    for name in "abc":
        write(root / f"m/1/sub/{name}")
    before, version = repository.fingerprint("m"), repository.read("m").versions[0]
    stat = os.stat

    def racing(path: str, **options: bool) -> os.stat_result:
        if str(path).endswith("sub/b"):
            Path(path).unlink(missing_ok=True)
        if str(path).endswith("sub"):
            status = stat(path, **options)
            (root / "m/1/sub").rename(root / "m/moved")
            return status
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "stat", racing)
        assert repository.fingerprint("m") not in (before, None)
    assert not version.is_unchanged()
    (root / "m/moved").rename(root / "m/1/sub")
    assert version.is_unchanged()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "stat", lambda path, **options: racing(path, **options) if "sub/" in str(path) else stat(path))
        assert repository.fingerprint("m") not in (before, None)
    assert not version.is_unchanged()


def test_a_file_that_vanishes_before_the_digest_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = Repository(root).read("m").versions[0]
    stat = os.stat

    def racing(path: str, **options: bool) -> os.stat_result:
        status = stat(path, **options)
        if str(path).endswith("model.onnx"):
            Path(path).unlink()
        return status

    monkeypatch.setattr(files.os, "stat", racing)
    with pytest.raises(InvalidRepository, match=r"^version 1 cannot be read: .*still being copied"):
        version.digest()


def test_a_half_copied_version_is_seen_to_grow(root: Path) -> None:
    version = Repository(root).read("m").versions[0]
    assert version.is_unchanged()
    with (root / "m/1/model.onnx").open("a") as file:
        file.write("the rest")
    assert not version.is_unchanged()


def test_swapping_a_link_mixes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "releases/a/1/model.onnx", "a")
    write(tmp_path / "releases/a/labels.txt", "a")
    write(tmp_path / "releases/b/1/model.onnx", "b")
    (tmp_path / "root").mkdir()
    link = tmp_path / "root/m"
    link.symlink_to(tmp_path / "releases/a")
    repository = Repository(tmp_path / "root")
    before, found = repository.fingerprint("m"), repository.read("m")
    (tmp_path / "new").symlink_to(tmp_path / "releases/b")
    os.replace(tmp_path / "new", link)
    assert repository.fingerprint("m") != before
    assert (found.versions[0].path / "model.onnx").read_text() == "a"
    assert (found.path / "labels.txt").read_text() == "a"
    assert found.versions[0].is_unchanged()
    assert repository.read("m").versions[0].digest() != found.versions[0].digest()


def test_swapping_the_link_of_a_version_mixes_nothing(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "blobs/x/model.onnx", "x")
    (root / "m/2").symlink_to(tmp_path / "blobs/x")
    found = Repository(root).read("m").versions[0]
    assert (found.number, found.path) == (2, tmp_path / "blobs/x")
    (root / "m/2").unlink()
    (root / "m/2").symlink_to(root / "m/1")
    assert found.is_unchanged()


def test_one_file_is_a_repository_of_one_model(tmp_path: Path) -> None:
    path = write(tmp_path / "My model (v2).onnx", "weights")
    write(tmp_path / "My model (v2).onnx.data", "external")
    repository = Repository.of_file(path)
    assert repository.names() == ["My_model__v2_"]
    found = repository.read("My_model__v2_")
    assert found.config.default_model_filename == "My model (v2).onnx"
    assert (found.config.backend, found.config.platform) == ("onnxruntime", "onnxruntime_onnx")
    (version,) = found.versions
    assert (version.number, version.path) == (1, tmp_path)
    before, digest = repository.fingerprint("My_model__v2_"), version.digest()
    write(tmp_path / "neighbour.txt")
    (tmp_path / "big").mkdir()
    assert repository.fingerprint("My_model__v2_") == before
    assert version.is_unchanged()
    write(tmp_path / "My model (v2).onnx.data", "other weights")
    assert repository.fingerprint("My_model__v2_") != before
    assert not version.is_unchanged()
    assert repository.read("My_model__v2_").versions[0].digest() != digest
    path.unlink()
    assert repository.fingerprint("My_model__v2_") is None
    with pytest.raises(NotInRepository):
        repository.read("My_model__v2_")


def test_one_file_through_a_link_keeps_its_name(tmp_path: Path) -> None:
    blob = write(tmp_path / "blobs/0123abc", "weights")
    (tmp_path / "m.onnx").symlink_to(blob)
    found = Repository.of_file(tmp_path / "m.onnx").read("m")
    assert found.config.default_model_filename == "m.onnx"
    assert found.config.backend == "onnxruntime"
    blob.write_text("more weights")
    assert not found.versions[0].is_unchanged()


def test_one_file_refuses_other_names_and_other_files(tmp_path: Path) -> None:
    repository = ModelFile(write(tmp_path / "m.onnx"))
    with pytest.raises(NotInRepository):
        repository.read("n")
    assert "path traversal" in refused(repository, "../m")
    with pytest.raises(InvalidRepository, match=r"m\.pt is no \.onnx file"):
        ModelFile(write(tmp_path / "m.pt"))
    with pytest.raises(InvalidRepository, match=r"no model file .*none\.onnx; give an existing \.onnx file"):
        ModelFile(tmp_path / "none.onnx")


def test_an_override_of_one_file_cannot_point_elsewhere(tmp_path: Path) -> None:
    repository = ModelFile(write(tmp_path / "m.onnx"))
    found = repository.read("m", parse_json('{"default_model_filename": "../secret.onnx", "max_batch_size": 2}'))
    assert (found.config.default_model_filename, found.config.max_batch_size) == ("m.onnx", 2)
