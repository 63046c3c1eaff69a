"""Server settings: from a file, from options, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config import ServerConfig, server_config
from headrace.errors import InvalidRepository

CONFIGS = Path(__file__).parent.parent.parent / "configs/server"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_the_examples_load_and_change_something(file: Path) -> None:
    assert server_config(file, {}) != ServerConfig()


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("drain_grace: 7\ndrain_seconds: 8\nrepository: models\n")
    config = server_config(file, {"drain_grace": 1.0, "drain_seconds": None, "grpc": None})
    assert (config.drain_grace, config.drain_seconds, config.grpc) == (1.0, 8.0, "127.0.0.1:8001")
    assert config.repository == tmp_path / "models"  # from where the file is, not from where the command runs


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("# nothing yet\n")
    assert server_config(file, {}) == ServerConfig()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:8001", "[::1]:8001", "0.0.0.0:65535"])
def test_addresses(address: str) -> None:
    assert server_config(None, {"grpc": address}).grpc == address


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("drain_grce: 1", "key 'drain_grce' is unknown; did you mean 'drain_grace'?"),
        ("drain_grace: -1", "key 'drain_grace' is -1: input should be greater than or equal to 0"),
        ("poll_seconds: .nan", "key 'poll_seconds' is nan"),
        ("grpc: 8001", "key 'grpc' is 8001"),
        ("grpc: localhost", "key 'grpc' is 'localhost': expected HOST:PORT"),
        ("grpc: '127.0.0.1:99999'", "key 'grpc' is '127.0.0.1:99999': expected HOST:PORT"),
        ("transport: quic", "key 'transport' is 'quic': input should be 'auto', 'native' or 'portable'"),
        ("- a\n- b", "holds no settings"),
        ("a: b: c", "is no YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(content)
    with pytest.raises(InvalidRepository) as raised:
        server_config(file, {})
    assert str(file) in raised.value.message
    assert told in raised.value.message


def test_a_wrong_option_is_named_as_an_option() -> None:
    with pytest.raises(InvalidRepository, match=r"option --model-control is 'sometimes'"):
        server_config(None, {"model_control": "sometimes"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRepository, match=r"cannot read .*absent\.yaml: No such file"):
        server_config(tmp_path / "absent.yaml", {})
