"""The configuration of a model as `auto_complete_config` sees it. Messages are those of Triton's Python backend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class ModelConfig:
    """What `auto_complete_config` is given, and returns."""

    def __init__(self, model_config: str) -> None:
        self._model_config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        """The configuration, to be read."""
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Say how many rows a batch may have.

        Raises:
            ValueError: the configuration has more.
        """
        written = self._model_config["max_batch_size"]
        if written > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {written}, but in auto-complete-config function for model "
                f"'{self._name}' specified max_batch_size {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Choose the dynamic batcher, if no scheduler is chosen.

        Raises:
            ValueError: another one is.
        """
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._model_config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{other}', but auto-complete-config function for model "
                    f"'{self._name}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def add_input(self, input: Mapping[str, Any]) -> None:
        """Declare an input: `name`, `data_type`, `dims` and perhaps `optional`.

        Raises:
            ValueError: it is not that, or the configuration has another of this name.
        """
        self._add("input", dict(input), ("name", "data_type", "dims", "optional"), "'name', 'data_type', 'dims' and 'optional'")

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Declare an output: `name`, `data_type` and `dims`.

        Raises:
            ValueError: it is not that, or the configuration has another of this name.
        """
        self._add("output", dict(output), ("name", "data_type", "dims"), "'name', 'data_type' and 'dims'")

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Say whether the model is `decoupled`.

        Raises:
            ValueError: it says something else, or the configuration says otherwise.
        """
        if set(transaction_policy_dict) - {"decoupled"}:
            raise ValueError(
                f"model transaction property in auto-complete-config function for model '{self._name}' contains property other "
                "than 'decoupled'."
            )
        policy = self._model_config.setdefault("model_transaction_policy", {})
        if "decoupled" not in transaction_policy_dict:
            return
        wanted = transaction_policy_dict["decoupled"]
        if policy.get("decoupled", wanted) != wanted:
            raise ValueError(
                f"trying to change decoupled property in auto-complete-config for model '{self._name}', which is already set to "
                f"'{policy['decoupled']}'."
            )
        policy["decoupled"] = wanted

    @property
    def _name(self) -> str:
        return self._model_config["name"]

    def _add(self, what: str, tensor: dict[str, Any], known: tuple[str, ...], listed: str) -> None:
        named = f"{what} '{tensor['name']}'" if "name" in tensor else what
        where = f"{named} in auto-complete-config function for model '{self._name}'"
        if set(tensor) - set(known):
            raise ValueError(f"{where} contains property other than {listed}.")
        for needed in ("name", "data_type", "dims"):
            if needed not in tensor:
                raise ValueError(f"{where} is missing '{needed}' property.")
        for present in self._model_config[what]:
            if present["name"] == tensor["name"]:
                self._check_same(what, present, tensor)
                present.update({key: value for key, value in tensor.items() if key != "name"})
                return
        self._model_config[what].append(tensor)

    def _check_same(self, what: str, present: Mapping[str, Any], tensor: Mapping[str, Any]) -> None:
        name = tensor["name"]
        if present["data_type"] not in ("TYPE_INVALID", tensor["data_type"]):
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype {present['data_type']} for {what} "
                f"'{name}', model provides {tensor['data_type']}"
            )
        if present["dims"] and present["dims"] != tensor["dims"]:
            raise ValueError(
                f"model '{self._name}', tensor '{name}': the model expects dims {tensor['dims']} but the model configuration "
                f"specifies dims {present['dims']}"
            )
        if present.get("optional", False) != tensor.get("optional", present.get("optional", False)):
            raise ValueError(
                f"model '{self._name}', tensor '{name}': the model expects optional {tensor['optional']} but the model "
                f"configuration specifies optional {present['optional']}"
            )
